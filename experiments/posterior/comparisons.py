"""Objectives on fresh comparisons of two documents; the raters' law is q(x) ~ exp r(x)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.posterior.base import Method, Setup, Trainable, draw_documents, policy
from experiments.posterior.problem import Problem
from shatter import losses
from shatter.types import Array, Key

OPTIMISM = 0.1  # alpha of XPO and SELM


class Comparisons(NamedTuple):
    """Compared pairs of documents, as indices `[B]`.

    Attributes:
      chosen: the preferred document.
      rejected: the other one.
    """

    chosen: Array
    rejected: Array


class Explored(NamedTuple):
    """Comparisons, and the indices `[B]` of the samples that optimism acts on."""

    comparisons: Comparisons
    sampled: Array


def _compare(key: Key, problem: Problem, first: Array, other: Array) -> Comparisons:
    """Asks raters about pairs; returns their choices."""
    odds = problem.rewards[first] - problem.rewards[other]
    wins = jax.random.bernoulli(key, jax.nn.sigmoid(odds))
    return Comparisons(jnp.where(wins, first, other), jnp.where(wins, other, first))


def _draw_uniform(
    setup: Setup, problem: Problem, trainable: Trainable, memory: Any, key: Key
) -> Comparisons:
    """Draws pairs of different documents uniformly."""
    del trainable, memory
    first_key, shift_key, choice_key = jax.random.split(key, 3)
    size, shape = len(problem.rewards), (setup.batch_size,)
    first = jax.random.randint(first_key, shape, 0, size)
    other = (first + jax.random.randint(shift_key, shape, 1, size)) % size
    return _compare(choice_key, problem, first, other)


def _draw_beside_pretrained(
    setup: Setup, problem: Problem, trainable: Trainable, memory: Any, key: Key
) -> Explored:
    """Draws one document of a pair from the policy, the other, the sample, from p0."""
    del memory
    first_key, other_key, choice_key = jax.random.split(key, 3)
    log_probs = policy(setup.world, trainable.policy)
    first = draw_documents(first_key, log_probs, setup.batch_size)
    other = draw_documents(other_key, problem.log_p0, setup.batch_size)
    return Explored(_compare(choice_key, problem, first, other), other)


def _draw_on_policy(
    setup: Setup, problem: Problem, trainable: Trainable, memory: Any, key: Key
) -> Explored:
    """Draws both documents of a pair from the policy; the first one is the sample."""
    del memory
    first_key, other_key, choice_key = jax.random.split(key, 3)
    log_probs = policy(setup.world, trainable.policy)
    first = draw_documents(first_key, log_probs, setup.batch_size)
    other = draw_documents(other_key, log_probs, setup.batch_size)
    return Explored(_compare(choice_key, problem, first, other), first)


def _four(
    problem: Problem, log_probs: Array, pairs: Comparisons
) -> tuple[Array, Array, Array, Array]:
    """Returns log pi of the chosen and of the rejected documents, then their log p0."""
    chosen, rejected = pairs
    ref = problem.log_p0
    return log_probs[chosen], log_probs[rejected], ref[chosen], ref[rejected]


def _dpo(setup: Setup, problem: Problem, trainable: Trainable, pairs: Comparisons) -> Array:
    log_probs = policy(setup.world, trainable.policy)
    return jnp.mean(losses.dpo_loss(*_four(problem, log_probs, pairs), beta=problem.beta))


def _ilhf(setup: Setup, problem: Problem, trainable: Trainable, pairs: Comparisons) -> Array:
    del problem
    log_probs = policy(setup.world, trainable.policy)
    responses = jnp.stack([log_probs[pairs.chosen], log_probs[pairs.rejected]], axis=-1)
    return jnp.mean(losses.ilhf_loss(responses, jnp.zeros(pairs.chosen.shape, int)))


def _xpo(setup: Setup, problem: Problem, trainable: Trainable, batch: Explored) -> Array:
    log_probs = policy(setup.world, trainable.policy)
    four = _four(problem, log_probs, batch.comparisons)
    sampled = log_probs[batch.sampled]
    return jnp.mean(losses.xpo_loss(*four, sampled, beta=problem.beta, alpha=OPTIMISM))


def _selm(setup: Setup, problem: Problem, trainable: Trainable, batch: Explored) -> Array:
    log_probs = policy(setup.world, trainable.policy)
    four = _four(problem, log_probs, batch.comparisons)
    sampled, ref_sampled = log_probs[batch.sampled], problem.log_p0[batch.sampled]
    return jnp.mean(
        losses.selm_loss(*four, sampled, ref_sampled, beta=problem.beta, alpha=OPTIMISM)
    )


DPO = Method(_draw_uniform, _dpo)
ILHF = Method(_draw_uniform, _ilhf, knows_beta=False)
XPO = Method(_draw_beside_pretrained, _xpo)
SELM = Method(_draw_on_policy, _selm)
