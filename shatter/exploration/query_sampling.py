"""Query arms that go by how much the members like the responses, or by nothing at all.

They compare utilities across queries, so that each member may have one shift only: ask about one
prompt, or by one reward. In their sums an empty slot counts as an average response of the pool.
"""

from collections.abc import Callable
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from shatter.exploration.base import (
    draw,
    mixture,
    prepare_queries,
    scan_keys,
    top,
    without_empty_slots,
)
from shatter.numerics import LOG_ZERO, assert_positive, masked_mean
from shatter.types import Array, Key


def uniform_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Draws queries uniformly, without regard to the members.

    This is passive learning where the pool is what people were shown. Arguments, result and errors
    are those of `QueryArm`.
    """
    log_probs, _, usable = prepare_queries(log_probs, valid, num_queries)
    return draw(key, jnp.zeros(usable.shape), usable, num_queries, distinct=True)


def boltzmann_queries(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_queries: int,
    temperature: float | Array = 2.0,
) -> Array:
    """Draws queries whose responses the tempered prediction likes.

    In proportion to `prod_k P(x_qk)^(1 / temperature)`, P the members' mixture over all responses
    of the pool: `boltzmann`, for whole queries. The temperature is above 0 (else a ValueError);
    infinity is `uniform_queries`. Each query is redrawn until it differs from the earlier ones.
    Other arguments, result and errors are those of `QueryArm`.
    """
    assert_positive(temperature=temperature)
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    responses = jnp.where(valid[None], log_probs, -jnp.inf).reshape(log_probs.shape[0], -1)
    law = jnp.maximum(mixture(responses), LOG_ZERO).reshape(valid.shape)
    utilities = jnp.sum(_centred(law[None], valid)[0], axis=-1) / temperature
    return draw(key, utilities, usable, num_queries, distinct=True)


def thompson_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Draws each query by a freshly drawn member, among the queries that are left.

    In proportion to `prod_k exp(u_m(x_qk))`, u_m the member's utility. Arguments, result and errors
    are those of `QueryArm`.

    Source: Thompson, On the Likelihood that One Unknown Probability Exceeds Another (1933), for
    the principle; for whole queries ours.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    utilities = jnp.sum(_centred(log_probs, valid), axis=-1)

    def choose(key: Key, free: Array) -> Array:
        member_key, draw_key = jax.random.split(key)
        member = jax.random.randint(member_key, (), 0, utilities.shape[0])
        return jax.random.categorical(draw_key, jnp.where(free, utilities[member], -jnp.inf))

    return _one_by_one(key, choose, usable, num_queries)


def double_thompson_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Takes each query by K freshly drawn members, a slot each, among the queries that are left.

    The query has the largest sum of utilities: `max_q max_s sum_k u_(m_s(k))(x_qk)` over the K!
    ways s to hand the slots to the members, so that K should be small. In a pool of all pairs of
    candidates it is `double_thompson`, except where both members are for one candidate. Arguments,
    result and errors are those of `QueryArm`.

    Source: Wu and Liu, Double Thompson Sampling for Dueling Bandits,
    https://arxiv.org/abs/1604.07101, for the principle; for whole queries ours.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    utilities, num_slots = _centred(log_probs, valid), valid.shape[1]
    slots, orders = np.arange(num_slots)[None, :], np.array([*permutations(range(num_slots))])

    def choose(key: Key, free: Array) -> Array:
        member_key, tie_key = jax.random.split(key)
        members = jax.random.randint(member_key, (num_slots,), 0, utilities.shape[0])
        by_order = jnp.sum(utilities[members][orders, :, slots], axis=1)
        return top(tie_key, jnp.max(by_order, axis=0), free, 1, distinct=True)[0]

    return _one_by_one(key, choose, usable, num_queries)


def _centred(utilities: Array, valid: Array) -> Array:
    """Returns utilities `[M, Q, K]` of mean 0 over what is possible; 0 on empty slots."""
    possible = valid[None] & (utilities > LOG_ZERO)
    flat = (utilities.shape[0], -1)
    means = masked_mean(utilities.reshape(flat), possible.reshape(flat))
    return jnp.where(valid[None], utilities - means[:, None, None], 0.0)


def _one_by_one(
    key: Key, choose: Callable[[Key, Array], Array], usable: Array, num_queries: int
) -> Array:
    """Returns queries chosen in turn by `(key, free[Q]) -> index`.

    A query is free if it can be asked and was not chosen yet.
    """

    def ask(free: Array, key: Key) -> tuple[Array, Array]:
        query = choose(key, free)
        return free & (jnp.arange(free.shape[0]) != query), query

    queries = scan_keys(ask, usable, key, num_queries)
    return without_empty_slots(queries, usable)
