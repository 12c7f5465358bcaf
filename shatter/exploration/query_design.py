"""Query arms of V-optimal design: whole queries, for the law or for the choices of a pool."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from shatter.exploration.base import (
    mixture,
    prepare_queries,
    scan_keys,
    top,
    without_empty_slots,
    without_rounding,
)
from shatter.exploration.beliefs import (
    Belief,
    finite,
    members_belief,
    possible,
    possible_in,
    restrict,
    scores_of,
)
from shatter.exploration.v_optimality import (
    law_belief,
    law_weights,
    learn,
    query_contrasts,
    relative,
)
from shatter.numerics import masked_mean
from shatter.types import Array, Key

_EXACT = jax.lax.Precision.HIGHEST


def v_optimal_queries(
    key: Key,
    log_probs: Array | Belief,
    *,
    valid: Array | None = None,
    num_queries: int,
    law: Array | None = None,
    same: Array | None = None,
) -> Array:
    """Returns the queries whose answers are expected to lower most the variance of the law.

    The score of a query is `sum_x w(x) sum_k Cov(L(x), z_k)^2`, z_k the contrasts of its responses,
    x all responses of the pool, each given what the queries before it will teach. It compares
    utilities across queries, so that each member may have one shift only. Memory: `(Q K)^2`; draw
    some of a large pool. Other arguments, result and errors are those of `QueryArm`.

    Source: see `shatter.exploration.v_optimality`.

    Args:
      log_probs: `[M, Q, K]` of members, or a `Belief` about `[Q, K]` responses.
      law: `[Q, K]`, log-probs of w, normalised or not; if None, what is predicted of the pool's
        responses. It has no weight on empty slots.
      same: bool `[Q, K, Q, K]`, true where two responses are one document, whose covariance is not
        shrunk; none are if None.
    """
    scores, valid, usable = prepare_queries(scores_of(log_probs), valid, num_queries)
    slots = valid.reshape(-1)
    flat = jnp.where(slots[None], scores.reshape(scores.shape[0], -1), -jnp.inf)
    law = mixture(flat) if law is None else jnp.where(slots, law.reshape(-1), -jnp.inf)
    weights = law_weights(law)
    known = _flat(log_probs) if isinstance(log_probs, Belief) else flat
    same = None if same is None else same.reshape((slots.size,) * 2)
    belief = law_belief(known, slots, weights, same)

    def drops(columns: Array, contrasts: Array, squares: Array) -> Array:
        del contrasts, squares
        return jnp.einsum("x,xqr->q", weights, jnp.square(columns), precision=_EXACT)

    return _in_turn(key, belief, valid, usable, drops, num_queries)


def v_optimal_choices(
    key: Key,
    log_probs: Array | Belief,
    *,
    valid: Array | None = None,
    num_queries: int,
    targets: Array | None = None,
) -> Array:
    """Returns the queries whose answers are expected to tell most about the choices of the pool.

    For texts that people wrote, of which the choices are wanted and not a law. The score of a query
    is `sum_t w(t) sum_(k, l) Cov(s_t z_tk, z_ql)^2`, z the contrasts; for pairs
    `(p_q (1 - p_q) / s_q^2) sum_t w(t) p_t (1 - p_t) Cov(d_t, d_q)^2`, d the log-odds: the drop of
    the variance of the choices' probabilities, to first order. Each query is given what those
    before it will teach. A shift a member and query is free. Memory: `(Q K)^2`; draw some of a
    large pool. Other arguments, result and errors are those of `QueryArm`.

    Source: see `shatter.exploration.v_optimality`.

    Args:
      log_probs: `[M, Q, K]` of members, or a `Belief` about `[Q, K]` responses.
      targets: `[Q]`, weights w >= 0 of the queries whose choices are wanted; all with two
        responses, equally, if None.
    """
    scores, valid, usable = prepare_queries(scores_of(log_probs), valid, num_queries)
    targets = usable * 1.0 if targets is None else jnp.where(targets > 0, targets, 0.0)
    known = (valid & possible_in(log_probs)).reshape(-1)
    if isinstance(log_probs, Belief):
        belief = _flat(log_probs)
    else:
        # An impossible response is like the member's least likely of the same query.
        values = possible(jnp.where(valid[None], scores, -jnp.inf).reshape(-1, valid.shape[1]))
        values = values.reshape(scores.shape)
        values -= masked_mean(values, valid[None])[..., None]
        values = jnp.where(known[None], values.reshape(scores.shape[0], -1), 0.0)
        query = jnp.arange(valid.size) // valid.shape[1]
        belief = members_belief(values, same=query[:, None] == query[None, :])
    belief = finite(restrict(belief, known))

    def drops(columns: Array, contrasts: Array, squares: Array) -> Array:
        by_query = columns.reshape(*valid.shape, *columns.shape[1:])
        shared = jnp.einsum("tpk,tkqr->tpqr", contrasts, by_query, precision=_EXACT)
        return jnp.einsum("t,tpqr->q", targets * squares, jnp.square(shared), precision=_EXACT)

    return _in_turn(key, belief, valid, usable, drops, num_queries)


def _flat(belief: Belief) -> Belief:
    """Returns the belief about `[Q K]` responses."""
    chex.assert_shape(belief.covariance, belief.mean.shape * 2)
    return Belief(belief.mean.reshape(-1), belief.covariance.reshape((belief.mean.size,) * 2))


def _in_turn(
    key: Key,
    belief: Belief,
    valid: Array,
    usable: Array,
    drops: Callable[[Array, Array, Array], Array],
    num_queries: int,
) -> Array:
    """Returns queries chosen in turn by `(columns[X, Q, R], contrasts, s^2) -> scores[Q]`."""
    pool, num_slots = valid.shape
    slots = jnp.arange(valid.size).reshape(valid.shape)
    means = belief.mean.reshape(valid.shape)

    def ask(state: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], Array]:
        covariance, free = state
        blocks = covariance.reshape(pool, num_slots, pool, num_slots)
        own = jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)
        contrasts, squares = jax.vmap(query_contrasts)(means, own, valid)
        by_query = covariance.reshape(valid.size, pool, num_slots)
        columns = jnp.einsum("xqj,qrj->xqr", by_query, contrasts, precision=_EXACT)
        scores = drops(columns, contrasts, squares)
        query = top(key, without_rounding(relative(scores, free)), free, 1, distinct=True)[0]
        left = learn(covariance, slots[query], contrasts[query])
        return (left, free & (jnp.arange(pool) != query)), query

    queries = scan_keys(ask, (belief.covariance, usable), key, num_queries)
    return without_empty_slots(queries, usable)
