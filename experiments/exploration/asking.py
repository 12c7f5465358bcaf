"""How an arm turns what the learners know into the pairs of a round."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.exploration.arms import PASSIVE_CANDIDATES, Arm
from experiments.exploration.config import Config
from shatter import ensembles, exploration, training
from shatter.types import Array, Key, Query

NUM_SAMPLES = 64  # of the mixture, as targets of a V-optimal batch


class Known(NamedTuple):
    """What the learners know of all D documents.

    Attributes:
      members: `[M, D]`, the members' laws, log-probs.
      point: `[D]`, the point estimate's law.
      posterior: `() -> (jacobian[D, P], covariance[P, P])`, of the point estimate by Laplace.
    """

    members: Array
    point: Array
    posterior: Callable[[], tuple[Array, Array]]


def ask(
    arm: Arm, config: Config, key: Key, known: Known, log_p0: Array, space: tuple[Array, Array]
) -> Query:
    """Returns the queries of a round.

    Args:
      arm: the arm.
      config: numbers of queries, responses and candidates.
      key: a typed key.
      known: what the learners know.
      log_p0: `[D]`, the pretrained law.
      space: tokens and mask of all documents.

    Returns:
      queries with leaves `[B, ...]`.
    """
    candidate_key, choice_key = jax.random.split(key)
    keys = jax.random.split(candidate_key, config.queries_per_round)
    law = _law(arm, known)
    pools = jax.vmap(lambda key: _candidates(arm, config, key, law, log_p0, space))(keys)
    choose = _together if arm.explore is None else _one_by_one
    chosen = choose(arm, config, choice_key, known, law, pools)
    return jax.vmap(training.take_responses)(pools, chosen)


def _law(arm: Arm, known: Known) -> Array:
    """Returns the law that candidates are drawn from, and that weighs the targets."""
    if arm.source == "point" or arm.asker == "point":
        return known.point
    return ensembles.mixture_log_probs(known.members)


def _candidates(
    arm: Arm, config: Config, key: Key, law: Array, log_p0: Array, space: tuple[Array, Array]
) -> Query:
    match arm.source:
        case "all":
            return exploration.pool_candidates(*space)
        case "pretrained":
            return exploration.drawn_candidates(
                key, log_p0, *space, num_candidates=PASSIVE_CANDIDATES
            )
    return exploration.drawn_candidates(
        key,
        law,
        *space,
        num_candidates=config.num_candidates,
        temperature=1.0 if arm.by_temperature else arm.temperature,
        distinct=True,
    )


def _one_by_one(
    arm: Arm, config: Config, key: Key, known: Known, law: Array, pools: Query
) -> Array:
    """Returns the responses `[B, K]` that a pair arm chooses for each query alone."""
    assert arm.explore is not None
    explore = arm.explore
    if arm.by_temperature:
        explore = partial(explore, temperature=arm.temperature)
    laws = known.members if arm.asker == "members" else known.point[None]

    def one(key: Key, pool: Query) -> Array:
        shown = laws[:, pool.item_ids]
        return explore(key, shown, valid=pool.valid, num_responses=config.num_responses or 2)

    return jax.vmap(one)(jax.random.split(key, config.queries_per_round), pools)


def _together(arm: Arm, config: Config, key: Key, known: Known, law: Array, pools: Query) -> Array:
    """Returns the responses `[B, K]` of a V-optimal batch."""
    sample_key, tie_key = jax.random.split(key)
    items = pools.item_ids.reshape(-1)
    candidates = jnp.arange(len(items)).reshape(pools.item_ids.shape)
    match arm.targets:
        case "candidates":
            texts, weights = items, law[items]
        case "samples":
            samples = jax.random.categorical(sample_key, law, shape=(NUM_SAMPLES,))
            texts = jnp.concatenate([items, samples])
            weights = jnp.where(jnp.arange(len(texts)) < len(items), -jnp.inf, 0.0)
        case "all":
            texts, weights, candidates = jnp.arange(len(law)), law, pools.item_ids
    scores: Array | exploration.Belief
    if arm.asker == "laplace":
        jacobian, covariance = known.posterior()
        scores = exploration.linear_belief(known.point[texts], jacobian[texts], covariance)
    else:
        scores = known.members[:, texts]
    return exploration.v_optimal_batch(
        tie_key,
        scores,
        candidates,
        valid=pools.valid,
        num_responses=config.num_responses or 2,
        law=weights,
        same=texts[:, None] == texts[None, :],
    )
