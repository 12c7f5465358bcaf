"""The problem that a seed draws once: a pretrained model, a reward, and the posterior of both."""

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
    """A pretrained model, a reward and the target of one beta.

    Attributes:
      params: parameters of the pretrained model.
      log_p0: `[D]`, log-probs of all documents under it, nats.
      rewards: `[D]`, rewards of all documents.
      beta: `[]`, KL coefficient.
      log_target: `[D]`, unnormalised log-probs of the target p*, nats.
      satisfied: bool `[D]`, true on the documents that meet the constraint.
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
"""`(log_p0[D], drawn[D], level) -> Target`; runs of one seed differ in their level."""


def draw_pretrained(key: Key, world: World) -> tuple[Params, Array]:
    """Draws Gaussian logits of every prefix; returns the model's parameters and law `[D]`.

    A transformer is fitted to the law of the logits.
    """
    table_key, lm_key = jax.random.split(key)
    params = world.table.init(table_key)
    log_p0 = documents.document_log_probs(world.table, params, *world.space)
    if world.lm is world.table:
        return params, log_p0
    params = fit_law(world, world.lm.init(lm_key), log_p0)
    return params, documents.document_log_probs(world.lm, params, *world.space)


def draw_problem(key: Key, level: Array, world: World, setting: Setting) -> Problem:
    """Draws the problem of a seed; the pretrained model and `drawn` depend on the key alone."""
    model_key, reward_key = jax.random.split(key)
    params, log_p0 = draw_pretrained(model_key, world)
    drawn = jax.random.normal(reward_key, log_p0.shape)
    return Problem(params, log_p0, *setting(log_p0, drawn, level))


def gaussian_reward(log_p0: Array, drawn: Array, level: Array) -> Target:
    """Returns the target of a standard normal reward: p* = p0 exp(r / beta) / Z, beta the level."""
    return drawn, level, log_p0 + drawn / level, drawn > 0


def pointwise_constraint(tokens: Array) -> Setting:
    """Returns the setting in which a document must hold token 1 twice in a row.

    The reward of these documents is 1 and that of the others 0; p* is p0 given that the constraint
    holds. The level is beta, which only objectives that read rewards instead of the target use.
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
    """Returns the setting in which a given share of documents holds token 2.

    p* = p0 exp(lam phi) / Z, phi = 1 on documents with token 2; the level is lam. The reward is
    lam phi with beta 1.
    """
    satisfied = moment_feature(tokens)

    def setting(log_p0: Array, drawn: Array, level: Array) -> Target:
        del drawn
        features = satisfied.astype(log_p0.dtype)[:, None]
        target = inference.moment_target(log_p0, features, level[None])
        return level * features[:, 0], jnp.ones(()), target, satisfied

    return setting


def moment_feature(tokens: Array) -> Array:
    """Returns which documents hold token 2, bool `[D]`."""
    return jnp.any(tokens[:, 1:] == MOMENT_TOKEN, axis=1)


def measure(problem: Problem, log_probs: Array) -> Metrics:
    """Returns exact measures of a law over all documents.

    Args:
      problem: the problem.
      log_probs: `[D]`, log pi, nats.

    Returns:
      "reward" = E_pi r; "kl" = KL(pi || p0), "target_kl" = KL(p* || pi) and "entropy", nats;
      "satisfied", the share of documents that meet the constraint; "distinct", the expected number
      of different documents among 100.
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
