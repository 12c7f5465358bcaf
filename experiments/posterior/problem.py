"""A pretrained model, a reward, and the posterior they make: what a seed draws once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.didactic import World, fit_law
from shatter import documents, inference, numerics
from shatter.types import Array, Key, Metrics, Params

PAIR_TOKEN, MOMENT_TOKEN = 1, 2
DISTINCT_OF = 100


class Problem(NamedTuple):
    """What a seed draws once, and the target of one beta.

    Attributes:
      params: the pretrained model's.
      log_p0: `[D]`, nats.
      rewards: `[D]`.
      beta: `[]`, KL coefficient.
      log_target: `[D]`, log P, unnormalised, of the target p*.
      satisfied: bool `[D]`, where a constraint holds.
    """

    params: Params
    log_p0: Array
    rewards: Array
    beta: Array
    log_target: Array
    satisfied: Array


Target = tuple[Array, Array, Array, Array]
"""rewards `[D]`, beta, log_target `[D]`, satisfied `[D]`."""
Setting = Callable[[Array, Array, Array], Target]
"""`(log_p0[D], drawn[D], level) -> Target`; the level is what runs of a seed differ in."""


def draw_pretrained(key: Key, world: World) -> tuple[Params, Array]:
    """Gaussian logits for every prefix, and their law `[D]`; a transformer is fitted to it."""
    table_key, lm_key = jax.random.split(key)
    params = world.table.init(table_key)
    log_p0 = documents.document_log_probs(world.table, params, *world.space)
    if world.lm is world.table:
        return params, log_p0
    params = fit_law(world, world.lm.init(lm_key), log_p0)
    return params, documents.document_log_probs(world.lm, params, *world.space)


def draw_problem(key: Key, level: Array, world: World, setting: Setting) -> Problem:
    """The problem of a seed; the pretrained model and the reward depend on the key alone."""
    model_key, reward_key = jax.random.split(key)
    params, log_p0 = draw_pretrained(model_key, world)
    drawn = jax.random.normal(reward_key, log_p0.shape)
    return Problem(params, log_p0, *setting(log_p0, drawn, level))


def gaussian_reward(log_p0: Array, drawn: Array, level: Array) -> Target:
    """A standard normal reward of every document; the level is beta, p* = p0 exp(r / beta) / Z."""
    return drawn, level, log_p0 + drawn / level, drawn > 0


def pointwise_constraint(tokens: Array) -> Setting:
    """The reward is 1 where a document holds token 1 twice in a row; p* = p0 on those.

    The level is beta; it matters to the objectives that know no target but a reward.
    """
    response = tokens[:, 1:]
    pairs = (response[:, :-1] == PAIR_TOKEN) & (response[:, 1:] == PAIR_TOKEN)
    satisfied = jnp.any(pairs, axis=1)

    def setting(log_p0: Array, drawn: Array, level: Array) -> Target:
        del drawn
        target = inference.pointwise_target(log_p0, satisfied)
        return satisfied.astype(log_p0.dtype), level, target, satisfied

    return setting


def moment_constraint(tokens: Array) -> Setting:
    """Token 2 in a given share of documents: p* = p0 exp(lam phi) / Z; the level is lam.

    The reward is lam phi, at beta = 1.
    """
    satisfied = moment_feature(tokens)

    def setting(log_p0: Array, drawn: Array, level: Array) -> Target:
        del drawn
        features = satisfied.astype(log_p0.dtype)[:, None]
        target = inference.moment_target(log_p0, features, level[None])
        return level * features[:, 0], jnp.ones(()), target, satisfied

    return setting


def moment_feature(tokens: Array) -> Array:
    """Whether a document holds token 2, bool `[D]`."""
    return jnp.any(tokens[:, 1:] == MOMENT_TOKEN, axis=1)


def measure(problem: Problem, log_probs: Array) -> Metrics:
    """Exact measures of a law over all documents.

    Args:
      problem: the problem.
      log_probs: `[D]`, log pi, nats.

    Returns:
      "reward" = E_pi r; "kl" = KL(pi || p0), "target_kl" = KL(p* || pi) and "entropy", nats;
      "satisfied", a share; "distinct", the expected number of different documents among 100.
    """
    target = jax.nn.log_softmax(problem.log_target)
    chance = -jnp.expm1(DISTINCT_OF * jnp.log1p(-jnp.minimum(jnp.exp(log_probs), 1 - 1e-6)))
    return {
        "reward": numerics.expectation(log_probs, problem.rewards),
        "kl": numerics.kl_divergence(log_probs, problem.log_p0),
        "target_kl": numerics.kl_divergence(target, log_probs),
        "entropy": numerics.entropy(log_probs),
        "satisfied": jnp.sum(jnp.exp(log_probs) * problem.satisfied),
        "distinct": jnp.sum(chance),
    }
