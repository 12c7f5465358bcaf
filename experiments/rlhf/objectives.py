"""The objectives as data: where each ends, and how it is trained."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.rlhf.config import Config
from experiments.rlhf.domains import Problem
from shatter import evaluation, losses
from shatter.numerics import kl_divergence
from shatter.types import Array


class Direct(NamedTuple):
    """Training of the policy on the comparisons by one loss.

    Attributes:
      loss: `(config, problem, log_probs[P, D], batch, beta) -> []`; the batch holds the indices of
        comparisons, int `[B]`.
    """

    loss: Callable[[Config, Problem, Array, Array, Array], Array]


class Pipeline(NamedTuple):
    """Training of a reward model, and then of a policy by PPO.

    Attributes:
      trains_policy: whether PPO trains a policy; otherwise the policy is the exact posterior of the
        reward model.
      is_adaptive: whether beta is steered to a target KL.
      share: the share of the comparisons that the reward model learns from.
    """

    trains_policy: bool = True
    is_adaptive: bool = False
    share: float = 1.0


class Objective(NamedTuple):
    """One row of the comparison.

    Attributes:
      training: how the policy is trained.
      networks: number of networks that are held in training.
      knows_beta: whether the result depends on beta.
      optimum: `(problem, beta) -> [P, D]`, log-probs of the law that enough comparisons lead to;
        None = no closed form.
    """

    training: Direct | Pipeline
    networks: int
    knows_beta: bool
    optimum: Callable[[Problem, Array], Array] | None


def _population(problem: Problem, beta: Array) -> Array:
    del beta
    return problem.log_q


def _tempered(problem: Problem, beta: Array) -> Array:
    return evaluation.dpo_optimum(problem.log_p0, problem.log_q, beta=beta)


def _ipo_end(problem: Problem, beta: Array) -> Array:
    end = lambda log_p0, log_q: evaluation.ipo_optimum(log_p0, log_q, beta=beta)
    return jax.vmap(end)(problem.log_p0, problem.log_q)


def compared(problem: Problem, values: Array, batch: Array) -> tuple[Array, Array]:
    """Returns the values of the chosen and of the rejected document of every comparison.

    Args:
      problem: the problem.
      values: `[P, D]`, log-probs or rewards.
      batch: int `[B]`, indices of comparisons.

    Returns:
      `[B]` and `[B]`.
    """
    prompts = problem.prompts[batch]
    return values[prompts, problem.chosen[batch]], values[prompts, problem.rejected[batch]]


def _ilhf(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    del beta
    pair = jnp.stack(compared(problem, log_probs, batch), axis=-1)
    loss = losses.ilhf_loss(pair, jnp.zeros(batch.shape, int))
    kl = jnp.mean(kl_divergence(problem.log_p0, log_probs))
    return jnp.mean(loss) + config.ilhf_lambda / config.num_comparisons * kl


def _dpo(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    pair, ref_pair = (compared(problem, law, batch) for law in (log_probs, problem.log_p0))
    return jnp.mean(losses.dpo_loss(*pair, *ref_pair, beta=beta))


def _ipo(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    pair, ref_pair = (compared(problem, law, batch) for law in (log_probs, problem.log_p0))
    return jnp.mean(losses.ipo_loss(*pair, *ref_pair, beta=beta))


def _slic(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    """Returns SLiC's hinge plus the expected cross-entropy towards p0, less a constant."""
    del beta
    hinge = losses.slic_loss(*compared(problem, log_probs, batch), delta=config.slic_delta)
    kl = jnp.mean(kl_divergence(problem.log_p0, log_probs))
    return jnp.mean(hinge) + config.slic_regulariser * kl


OBJECTIVES = {
    "ilhf": Objective(Direct(_ilhf), 2, False, _population),
    "rlhf": Objective(Pipeline(), 4, True, _tempered),
    "rlhf_adaptive": Objective(Pipeline(is_adaptive=True), 4, False, None),
    "rm_posterior": Objective(Pipeline(trains_policy=False), 2, True, _tempered),
    "rm_posterior_few": Objective(Pipeline(trains_policy=False, share=1 / 16), 2, True, _tempered),
    "dpo": Objective(Direct(_dpo), 2, True, _tempered),
    "ipo": Objective(Direct(_ipo), 2, True, _ipo_end),
    "slic": Objective(Direct(_slic), 2, False, None),
}
"""Every objective by the name that `--objectives` takes."""
