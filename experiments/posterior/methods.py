"""The table of objectives, and those that need samples of the policy or none at all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from experiments.posterior.base import (
    Method,
    Setup,
    draw_from_policy,
    policy,
    policy_tokens,
)
from experiments.posterior.comparisons import DPO, ILHF, SELM, XPO
from experiments.posterior.distributional import GDC, REJECTION_SFT, fdpg
from experiments.posterior.ppo import PPO
from experiments.posterior.problem import Problem
from shatter import losses, numerics
from shatter.types import Array, Key

SampleLoss = Callable[[Problem, Array, Array], Array]
"""`(problem, log_probs[B], indices[B]) -> [B]`, of samples of the policy."""
ExactLoss = Callable[[Problem, Array], Array]
"""`(problem, log_probs[D]) -> []`, of the whole law."""


def _reward(problem: Problem, log_probs: Array, indices: Array) -> Array:
    return losses.rloo_loss(log_probs, problem.rewards[indices])


def _kl_control(problem: Problem, log_probs: Array, indices: Array) -> Array:
    log_p0, rewards = problem.log_p0[indices], problem.rewards[indices]
    return losses.posterior_loss(log_probs, log_p0, rewards, beta=problem.beta)


def _rloo(problem: Problem, log_probs: Array, indices: Array) -> Array:
    log_p0, rewards = problem.log_p0[indices], problem.rewards[indices]
    bound = losses.elbo(log_probs, log_p0, rewards, beta=problem.beta)
    return losses.rloo_loss(log_probs, problem.beta * bound)


def _penalised(
    estimator: Callable[[Array, Array], Array], problem: Problem, log_probs: Array, indices: Array
) -> Array:
    """Returns RLOO's loss of the reward plus beta times an estimate of the KL, differentiated."""
    penalty = estimator(log_probs, problem.log_p0[indices])
    return _reward(problem, log_probs, indices) + problem.beta * penalty


def _reward_exact(problem: Problem, log_probs: Array) -> Array:
    return -numerics.expectation(log_probs, problem.rewards)


def _kl_control_exact(problem: Problem, log_probs: Array) -> Array:
    rewards, beta = problem.rewards, problem.beta
    return losses.exact_posterior_loss(log_probs, problem.log_p0, rewards, beta=beta)


def _mean_of_samples(
    loss: SampleLoss, setup: Setup, problem: Problem, trainable: Any, indices: Array
) -> Array:
    log_probs = policy(setup.world, trainable.policy)[indices]
    return jnp.mean(loss(problem, log_probs, indices))


def _whole_law(
    loss: ExactLoss, setup: Setup, problem: Problem, trainable: Any, batch: tuple[()]
) -> Array:
    del batch
    return loss(problem, policy(setup.world, trainable.policy))


def _mean_by_tokens(setup: Setup, problem: Problem, trainable: Any, indices: Array) -> Array:
    tokens = policy_tokens(setup.world, trainable.policy)[indices]
    ref_tokens = policy_tokens(setup.world, problem.params)[indices]
    rewards, mask = problem.rewards[indices], setup.world.space[1][indices]
    return jnp.mean(
        losses.token_posterior_loss(tokens, ref_tokens, rewards, mask, beta=problem.beta)
    )


def _draw_nothing(
    setup: Setup, problem: Problem, trainable: Any, memory: Any, key: Key
) -> tuple[()]:
    del setup, problem, trainable, memory, key
    return ()


def _on_policy(loss: SampleLoss, *, knows_beta: bool = True) -> Method:
    return Method(draw_from_policy, partial(_mean_of_samples, loss), knows_beta=knows_beta)


def _exact(loss: ExactLoss, *, knows_beta: bool = True) -> Method:
    return Method(_draw_nothing, partial(_whole_law, loss), knows_beta=knows_beta)


METHODS: dict[str, Method] = {
    "reward": _on_policy(_reward, knows_beta=False),
    "reward_exact": _exact(_reward_exact, knows_beta=False),
    "kl_control": _on_policy(_kl_control),
    "kl_control_exact": _exact(_kl_control_exact),
    "kl_control_token": Method(draw_from_policy, _mean_by_tokens),
    "rloo": _on_policy(_rloo),
    "kl_penalty_k2": _on_policy(partial(_penalised, losses.kl_k2)),
    "kl_penalty_k3": _on_policy(partial(_penalised, losses.kl_k3)),
    "ppo": PPO,
    "fdpg_forward_kl": fdpg(losses.forward_kl_slope),
    "fdpg_reverse_kl": fdpg(losses.reverse_kl_slope),
    "fdpg_jensen_shannon": fdpg(losses.jensen_shannon_slope),
    "fdpg_total_variation": fdpg(losses.total_variation_slope),
    "fdpg_forward_chi2": fdpg(losses.forward_chi_squared_slope),
    "fdpg_reverse_chi2": fdpg(losses.reverse_chi_squared_slope),
    "gdc": GDC,
    "rejection_sft": REJECTION_SFT,
    "dpo": DPO,
    "xpo": XPO,
    "selm": SELM,
    "ilhf": ILHF,
}
"""Every objective by the name that `--objectives` takes."""
