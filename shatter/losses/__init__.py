"""Losses of comparisons and samples, as functions of arrays of log-probs; no loss sees a model.

Half precision is raised to float32, and the losses are float32 (see `shatter.numerics`). Where a
loss exponentiates a log-ratio, the ratio is bounded as its docstring says, so that values and
gradients stay finite.
"""

from shatter.losses.distributional import (
    adapt_proposal,
    fdpg_loss,
    forward_chi_squared_slope,
    forward_kl_slope,
    gdc_loss,
    jensen_shannon_slope,
    reverse_chi_squared_slope,
    reverse_kl_slope,
    total_variation_slope,
)
from shatter.losses.group_relative import grpo_advantages, grpo_loss
from shatter.losses.inclusive import forward_kl_loss, ilhf_loss, ilhf_ranking_loss
from shatter.losses.nudged import nudged_reinforce_loss
from shatter.losses.posterior import (
    elbo,
    exact_posterior_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    posterior_loss,
    token_posterior_loss,
)
from shatter.losses.preference import dpo_loss, ipo_loss, selm_loss, slic_loss, xpo_loss
from shatter.losses.reinforcement import (
    adapt_beta,
    generalised_advantages,
    kl_penalised_rewards,
    ppo_loss,
    reinforce_loss,
    rloo_loss,
    value_loss,
    whiten,
)
from shatter.losses.supervised import reward_model_loss, reward_model_ranking_loss, sft_loss
from shatter.losses.tilt import tilted_utilities
from shatter.losses.twists import contrastive_twist_loss

__all__ = [
    "adapt_beta",
    "adapt_proposal",
    "contrastive_twist_loss",
    "dpo_loss",
    "elbo",
    "exact_posterior_loss",
    "fdpg_loss",
    "forward_chi_squared_slope",
    "forward_kl_loss",
    "forward_kl_slope",
    "gdc_loss",
    "generalised_advantages",
    "grpo_advantages",
    "grpo_loss",
    "ilhf_loss",
    "ilhf_ranking_loss",
    "ipo_loss",
    "jensen_shannon_slope",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_penalised_rewards",
    "nudged_reinforce_loss",
    "posterior_loss",
    "ppo_loss",
    "reinforce_loss",
    "reverse_chi_squared_slope",
    "reverse_kl_slope",
    "reward_model_loss",
    "reward_model_ranking_loss",
    "rloo_loss",
    "selm_loss",
    "sft_loss",
    "slic_loss",
    "tilted_utilities",
    "token_posterior_loss",
    "total_variation_slope",
    "value_loss",
    "whiten",
    "xpo_loss",
]
