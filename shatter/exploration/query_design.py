"""Query arms of V-optimal design: whole queries, for the law or for the choices of a pool."""

from collections.abc import Callable

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
from shatter.exploration.beliefs import Belief, members_belief, possible, scores_of
from shatter.exploration.v_optimality import centre, law_weights, learn, query_contrasts
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
        responses.
    """
    usable_scores, valid, usable = prepare_queries(scores_of(log_probs), valid, num_queries)
    flat = jnp.where(valid[None], usable_scores, -jnp.inf).reshape(usable_scores.shape[0], -1)
    weights = law_weights(mixture(flat) if law is None else law.reshape(-1))
    weights = jnp.where(valid.reshape(-1), weights, 0.0)
    if isinstance(log_probs, Belief):
        belief = centre(_flat(log_probs, valid), weights)
    else:
        known = possible(flat)
        known -= jnp.sum(weights * known, axis=1, keepdims=True)
        belief = members_belief(jnp.where(valid.reshape(-1)[None], known, 0.0))

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
    targets = jnp.where(usable, 1.0, 0.0) if targets is None else targets
    if isinstance(log_probs, Belief):
        belief = _flat(log_probs, valid)
    else:
        known = possible(jnp.where(valid[None], scores, -jnp.inf).reshape(scores.shape[0], -1))
        known = known.reshape(scores.shape)
        known = jnp.where(valid[None], known - masked_mean(known, valid[None])[..., None], 0.0)
        query = jnp.arange(valid.size) // valid.shape[1]
        flat = known.reshape(scores.shape[0], -1)
        belief = members_belief(flat, same=query[:, None] == query[None, :])

    def drops(columns: Array, contrasts: Array, squares: Array) -> Array:
        by_query = columns.reshape(*valid.shape, *columns.shape[1:])
        shared = jnp.einsum("tpk,tkqr->tpqr", contrasts, by_query, precision=_EXACT)
        return jnp.einsum("t,tpqr->q", targets * squares, jnp.square(shared), precision=_EXACT)

    return _in_turn(key, belief, valid, usable, drops, num_queries)


def _flat(belief: Belief, valid: Array) -> Belief:
    """Returns the belief about `[Q K]` responses, mean and covariances 0 on empty slots."""
    flat = valid.reshape(-1)
    covariance = belief.covariance.reshape(valid.size, valid.size)
    return Belief(
        jnp.where(flat, belief.mean.reshape(-1), 0.0),
        jnp.where(flat[:, None] & flat[None, :], covariance, 0.0),
    )


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
        unit = jnp.maximum(jnp.max(scores, where=free, initial=0.0), jnp.finfo(scores.dtype).tiny)
        query = top(key, without_rounding(scores / unit), free, 1, distinct=True)[0]
        left = learn(covariance, slots[query], contrasts[query])
        return (left, free & (jnp.arange(pool) != query)), query

    queries = scan_keys(ask, (belief.covariance, usable), key, num_queries)
    return without_empty_slots(queries, usable)
