"""Which B of Q whole queries to ask, of one prompt or of many: by what the members like.

Every arm: `(key, log_probs[M, Q, K], *, valid=None, num_queries) -> indices[num_queries]`, with
`log_probs` each member's log-prob (or utility) of every response of every query. The queries
differ, and each has at least two responses: where fewer can be asked, some repeat. A log-prob of
NaN counts as impossible to its member. Both are errors under checkify.

These arms compare utilities across queries and want one shift a member: one prompt, or one reward.
In their sums an empty slot counts as an average response of the pool. The arms of
`query_information` see a member's choice within each query alone.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.exploration.base import draw, known, mixture, top, without_empty_slots
from shatter.numerics import LOG_ZERO, assert_positive, masked_mean
from shatter.types import Array, Key


def uniform_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Uniformly among the queries: passive learning, where the pool is what people were shown.

    Args:
      key: a typed key.
      log_probs: `[M, Q, K]`, only its shape matters.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.

    Returns:
      int `[B]`, query indices.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots.
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
    """Queries whose responses the tempered prediction likes, `prod_k P(x_qk)^(1 / temperature)`.

    P is the members' mixture over all responses of the pool; `boltzmann`, for whole queries. Each
    query is redrawn until it differs from the earlier ones.

    Args:
      key: a typed key.
      log_probs: `[M, Q, K]`, nats, each member's up to one shift.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.
      temperature: > 0; infinity is `uniform_queries`.

    Returns:
      int `[B]`, query indices.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots, or by temperature.
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
    """Each query by a freshly drawn member, `prod_k exp(u_m(x_qk))`, among the queries left.

    Source: Thompson, On the Likelihood that One Unknown Probability Exceeds Another (1933), for
    the principle; for whole queries ours.

    Args:
      key: a typed key.
      log_probs: `[M, Q, K]`, nats, each member's up to one shift.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.

    Returns:
      int `[B]`, query indices.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots.
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
    """Each query by K freshly drawn members, a slot each: the largest sum, among the queries left.

    `max_q max_s sum_k u_(m_s(k))(x_qk)` over the K! ways s to hand the slots to the members; a
    tie is broken by the key. In a pool of all pairs of candidates it is `double_thompson`, but for
    what happens when both members are for one candidate.

    Source: Wu and Liu, Double Thompson Sampling for Dueling Bandits,
    https://arxiv.org/abs/1604.07101, for the principle; for whole queries ours.

    Args:
      key: a typed key.
      log_probs: `[M, Q, K]`, nats, each member's up to one shift; K small.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.

    Returns:
      int `[B]`, query indices.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots.
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


def prepare_queries(
    log_probs: Array, valid: Array | None, num_queries: int
) -> tuple[Array, Array, Array]:
    """Checks an arm's arguments; `log_probs` finite, `valid[Q, K]`, which queries can be asked."""
    log_probs, valid = check_queries(log_probs, valid)
    pool, num_slots = valid.shape
    if num_slots < 2:
        raise ValueError(f"a query needs at least two slots, found log_probs {log_probs.shape}")
    if not 1 <= num_queries <= pool:
        raise ValueError(f"num_queries must be from 1 to the pool's {pool}, found {num_queries}")
    usable = jnp.sum(valid, axis=-1) >= 2
    checkify.debug_check(
        jnp.sum(usable) >= num_queries,
        f"{num_queries} queries are wanted, found {{usable}} with two responses or more",
        usable=jnp.sum(usable),
    )
    return log_probs, valid, usable


def check_queries(log_probs: Array, valid: Array | None) -> tuple[Array, Array]:
    """Checks log-probs `[M, Q, K]` and `valid[Q, K]`; log-probs are then finite."""
    chex.assert_rank(log_probs, 3)
    chex.assert_type(log_probs, float)
    valid = jnp.ones(log_probs.shape[1:], bool) if valid is None else jnp.asarray(valid)
    chex.assert_shape(valid, log_probs.shape[1:])
    unknown = jnp.isnan(log_probs) & valid[None]
    checkify.debug_check(~jnp.any(unknown), "the queries' log-probs hold a NaN")
    return jnp.where(valid[None], known(log_probs), LOG_ZERO), valid


def _centred(utilities: Array, valid: Array) -> Array:
    """Utilities `[M, Q, K]` of mean 0 over what is possible in the pool; 0 on empty slots."""
    possible = valid[None] & (utilities > LOG_ZERO)
    flat = (utilities.shape[0], -1)
    means = masked_mean(utilities.reshape(flat), possible.reshape(flat))
    return jnp.where(valid[None], utilities - means[:, None, None], 0.0)


def _one_by_one(
    key: Key, choose: Callable[[Key, Array], Array], usable: Array, num_queries: int
) -> Array:
    """Queries chosen in turn by `(key, free[Q]) -> index`; free: can be asked, and was not yet."""

    def ask(free: Array, key: Key) -> tuple[Array, Array]:
        query = choose(key, free)
        return free & (jnp.arange(free.shape[0]) != query), query

    queries = scan_keys(ask, usable, key, num_queries)
    return without_empty_slots(queries, usable)


def scan_keys(step: Callable[[Any, Key], tuple[Any, Array]], start: Any, key: Key, num: int) -> Any:
    """A scan's outputs over `num` keys, split off.

    The keys go through it as numbers: under vmap jax's check for a second use of a key takes a scan
    over keys for one.

    Args:
      step: `(carry, key) -> (carry, output)`.
      start: the first carry.
      key: a typed key.
      num: how many steps.

    Returns:
      The outputs, stacked.
    """
    impl = jax.random.key_impl(key)
    numbers = jax.random.key_data(jax.random.split(key, num))
    return jax.lax.scan(
        lambda carry, data: step(carry, jax.random.wrap_key_data(data, impl=impl)), start, numbers
    )[1]
