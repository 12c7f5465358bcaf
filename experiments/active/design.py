"""Designs of batches of pairs whose utilities are linear in features, at the cost of the features.

`shatter.exploration.v_optimal_choices` holds the covariance of all responses of a pool, whose size
goes by the square. Where the utilities are `x . theta` with a Gaussian theta, everything that it
needs of a pair is its difference of features, so that a whole pool costs what its features cost.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter import exploration
from shatter.exploration.base import scan_keys, top, without_empty_slots, without_rounding
from shatter.exploration.v_optimality import answer_rates
from shatter.types import Array, Key

_EXACT = jax.lax.Precision.HIGHEST


class LinearBelief(NamedTuple):
    """A belief about utilities that are linear in Gaussian parameters.

    Attributes:
      mean: `[Q, 2]`, of the utilities of pairs, nats.
      features: `[Q, 2, P]`.
      covariance: `[P, P]`, of the parameters.
    """

    mean: Array
    features: Array
    covariance: Array


class _State(NamedTuple):
    """What the queries so far leave: S, `x' S x` and `x' S T S x` of all pairs, who is free."""

    covariance: Array
    spread: Array
    drop: Array
    free: Array


def v_optimal(
    key: Key, log_probs: Array | LinearBelief, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Returns the pairs whose answers are expected to tell most about the choices of the pool.

    With x the difference of a pair's features, S the covariance of the parameters, p the predicted
    choice and `s^2 = 1 + pi x' S x / 8`, the score is `(p (1 - p) / s^2) x' S T S x`, with
    `T = sum_t p_t (1 - p_t) x_t x_t'` over the pairs of the pool before the batch. After a query
    S loses what its answer will teach: `S <- S - (p (1 - p) / s^2) S x x' S`.

    Args:
      key: a typed key, which breaks ties.
      log_probs: a linear belief about the pool's pairs; of members' utilities `[M, Q, 2]` the
        result is that of `shatter.exploration.v_optimal_choices`.
      valid: bool `[Q, 2]`; a pair with an empty slot is neither asked nor a target.
      num_queries: B.

    Returns:
      int `[B]`, the pairs, in the order of choice.
    """
    if not isinstance(log_probs, LinearBelief):
        return exploration.v_optimal_choices(key, log_probs, valid=valid, num_queries=num_queries)
    return _in_turn(key, log_probs, valid, num_queries, lambda state, rates: rates * state.drop)


def joint_infomax(
    key: Key,
    log_probs: Array | LinearBelief,
    *,
    valid: Array | None = None,
    num_queries: int,
    num_outcomes: int = 256,
) -> Array:
    """Returns the pairs whose answers tell most about the parameters together.

    The gain of a pair given those before it is `-log(1 - (p (1 - p) / s^2) x' S x) / 2`, by which
    the entropy of the parameters falls when S learns as in `v_optimal`: D-optimal design. It rises
    with `(p (1 - p) / s^2) x' S x`, which is the score.

    Args:
      key: a typed key, which breaks ties.
      log_probs: a linear belief about the pool's pairs; of members' utilities `[M, Q, 2]` the
        result is that of `shatter.exploration.joint_infomax_queries`.
      valid: bool `[Q, 2]`; a pair with an empty slot is not asked.
      num_queries: B.
      num_outcomes: of members: as in `joint_infomax_queries`.

    Returns:
      int `[B]`, the pairs, in the order of choice.
    """
    if not isinstance(log_probs, LinearBelief):
        return exploration.joint_infomax_queries(
            key, log_probs, valid=valid, num_queries=num_queries, num_outcomes=num_outcomes
        )
    return _in_turn(key, log_probs, valid, num_queries, lambda state, rates: rates * state.spread)


def _in_turn(
    key: Key,
    belief: LinearBelief,
    valid: Array | None,
    num_queries: int,
    score: Callable[[_State, Array], Array],
) -> Array:
    """Returns pairs chosen in turn by `(state, p (1 - p) / s^2) -> scores[Q]`."""
    mean = belief.mean[:, 0] - belief.mean[:, 1]
    gaps = belief.features[:, 0] - belief.features[:, 1]
    usable = jnp.ones(len(mean), bool) if valid is None else jnp.all(valid, axis=-1)
    product = lambda *factors: jnp.linalg.multi_dot(factors, precision=_EXACT)
    seen = product(gaps, belief.covariance)
    spread = jnp.sum(seen * gaps, axis=-1)
    chances, _ = answer_rates(mean, spread)
    targets = product(gaps.T * jnp.where(usable, chances, 0.0)[None], gaps)
    drop = jnp.sum(product(seen, targets) * seen, axis=-1)

    def ask(state: _State, key: Key) -> tuple[_State, Array]:
        _, rates = answer_rates(mean, state.spread)
        scores = jnp.maximum(score(state, rates), 0.0)
        unit = jnp.maximum(jnp.max(scores, where=state.free, initial=0.0), 1e-30)
        query = top(key, without_rounding(scores / unit), state.free, 1, distinct=True)[0]
        rate, column = rates[query], product(state.covariance, gaps[query])
        pulled = product(targets, column)
        along, across = product(gaps, column), product(gaps, state.covariance, pulled)
        learned = rate * jnp.square(along)
        return _State(
            state.covariance - rate * jnp.outer(column, column),
            jnp.maximum(state.spread - learned, 0.0),
            state.drop - 2.0 * rate * along * across + rate * learned * product(column, pulled),
            state.free & (jnp.arange(len(mean)) != query),
        ), query

    start = _State(belief.covariance, spread, drop, usable)
    return without_empty_slots(scan_keys(ask, start, key, num_queries), usable)
