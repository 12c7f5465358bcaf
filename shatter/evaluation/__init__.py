"""How good a model is: against the population, against held-out choices, and over time."""

from shatter.evaluation.laws import prediction_metrics, segment_kl, win_rate
from shatter.evaluation.optima import (
    best_of_n_log_probs,
    dpo_optimum,
    expected_best_of_n,
    ipo_optimum,
    posterior_optimum,
    reward_kl_frontier,
    reward_optimum,
)
from shatter.evaluation.predictions import (
    choice_log_loss,
    disagreement,
    dyadic_inputs,
    dyadic_joint_log_loss,
    joint_log_loss,
    marginal_log_loss,
)
from shatter.evaluation.queries import bootstrap_interval, queries_to_level
from shatter.numerics import entropy, kl_divergence, total_variation

__all__ = [
    "best_of_n_log_probs",
    "bootstrap_interval",
    "choice_log_loss",
    "disagreement",
    "dpo_optimum",
    "dyadic_inputs",
    "dyadic_joint_log_loss",
    "entropy",
    "expected_best_of_n",
    "ipo_optimum",
    "joint_log_loss",
    "kl_divergence",
    "marginal_log_loss",
    "posterior_optimum",
    "prediction_metrics",
    "queries_to_level",
    "reward_kl_frontier",
    "reward_optimum",
    "segment_kl",
    "total_variation",
    "win_rate",
]
