"""Argument validation and selection helpers shared by all acquisition functions."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32
from shatter.types import Array, Key


def prepare(
    log_probs: Array, valid: Array | None, num_responses: int, distinct: bool
) -> tuple[Array, Array]:
    """Checks the arguments of a `PairArm` and returns its `log_probs` and `valid`.

    The log-probs are then in float32 at least, where scores of different candidates rarely tie, and
    -inf on invalid candidates and nowhere else.
    """
    chex.assert_rank(log_probs, 2)
    chex.assert_type(log_probs, float)
    num_candidates = log_probs.shape[1]
    if num_responses < 2:
        raise ValueError(f"a query needs num_responses >= 2, found {num_responses}")
    if distinct and num_candidates < num_responses:
        raise ValueError(
            f"{num_responses} different responses need at least as many candidates, found "
            f"{num_candidates}: draw more candidates, or pass distinct=False"
        )
    valid = jnp.ones(num_candidates, bool) if valid is None else jnp.asarray(valid)
    chex.assert_shape(valid, (num_candidates,))
    checkify.debug_check(~jnp.any(jnp.isnan(log_probs)), "the candidates' log-probs hold a NaN")
    checkify.debug_check(
        jnp.sum(valid) >= (num_responses if distinct else 1),
        f"{num_responses} responses are wanted, found {{valid}} valid candidates",
        valid=jnp.sum(valid),
    )
    return jnp.where(valid[None, :], finite_scores(log_probs), -jnp.inf), valid


def prepare_queries(
    log_probs: Array, valid: Array | None, num_queries: int
) -> tuple[Array, Array, Array]:
    """Checks the arguments of a `QueryArm`.

    Returns:
      The log-probs as `check_queries` returns them, `valid[Q, K]`, and bool `[Q]`, whether a query
      has two responses and so can be asked.
    """
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
    """Checks log-probs `[M, Q, K]` and `valid[Q, K]`; returns both, the log-probs finite."""
    chex.assert_rank(log_probs, 3)
    chex.assert_type(log_probs, float)
    valid = jnp.ones(log_probs.shape[1:], bool) if valid is None else jnp.asarray(valid)
    chex.assert_shape(valid, log_probs.shape[1:])
    unknown = jnp.isnan(log_probs) & valid[None]
    checkify.debug_check(~jnp.any(unknown), "the queries' log-probs hold a NaN")
    return jnp.where(valid[None], finite_scores(log_probs), LOG_ZERO), valid


def finite_scores(log_probs: Array) -> Array:
    """Returns finite log-probs in float32 at least; NaN counts as impossible.

    No score made of them is then NaN. A NaN is neither above nor below another score and would make
    one candidate be chosen twice.
    """
    log_probs = at_least_float32(log_probs)
    return jnp.where(log_probs > LOG_ZERO, jnp.minimum(log_probs, -LOG_ZERO), LOG_ZERO)


def mixture(log_probs: Array) -> Array:
    """Returns log-probs `[N]` of the mixture of the members' laws over the candidates.

    Each member is normalised over the candidates first, because its log-probs have a free shift.
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(log_probs, axis=1), axis=0)


def draw(key: Key, utilities: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """Draws K candidates in proportion to exp(utilities), without repetition if `distinct`."""
    utilities = _above_invalid(utilities, valid)
    if not distinct:
        return jax.random.categorical(key, utilities, shape=(num_responses,))
    noisy = utilities + jax.random.gumbel(key, utilities.shape, utilities.dtype)
    return without_empty_slots(_largest(noisy, num_responses), valid)


def _above_invalid(scores: Array, valid: Array) -> Array:
    """Returns scores that are -inf on invalid candidates alone.

    A valid candidate whose score is -inf or NaN gets the least float.
    """
    least = jnp.finfo(scores.dtype).min
    return jnp.where(valid, jnp.where(scores > least, scores, least), -jnp.inf)


def without_empty_slots(indices: Array, valid: Array) -> Array:
    """Replaces invalid candidates, chosen where too few are valid, by the first valid one."""
    return jnp.where(valid[indices], indices, jnp.argmax(valid))


def top(key: Key, scores: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """Returns the K best candidates, or K times the best unless `distinct`; the key breaks ties."""
    order = jax.random.permutation(key, scores.shape[0])
    shuffled = _above_invalid(scores, valid)[order]
    best = order[_largest(shuffled, num_responses if distinct else 1)]
    return without_empty_slots(jnp.broadcast_to(best, (num_responses,)), valid)


def best_set(key: Key, scores: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """Returns the best pair under symmetric scores `[N, N]` >= 0, grown to K candidates.

    Each further candidate has the largest sum of scores with those before it. Scores that differ by
    rounding alone count as tied, and the key breaks ties: members that agree give a uniformly
    random pair.
    """
    num_candidates = scores.shape[0]
    allowed = valid[:, None] & valid[None, :]
    if distinct:
        allowed &= ~jnp.eye(num_candidates, dtype=bool)
    keys = jax.random.split(key, num_responses - 1)
    pair = _best(keys[0], scores.ravel(), allowed.ravel())
    responses = [pair // num_candidates, pair % num_candidates]
    for k in keys[1:]:
        chosen = jnp.stack(responses)
        free = valid & ~jnp.any(jax.nn.one_hot(chosen, num_candidates, dtype=bool), axis=0)
        responses.append(_best(k, jnp.sum(scores[chosen], axis=0), free if distinct else valid))
    return without_empty_slots(jnp.stack(responses), valid)


def _largest(scores: Array, count: int) -> Array:
    """Returns the indices of the largest scores.

    By a sort, because `lax.top_k` gathers an array that is sharded over seeds.
    """
    return jnp.argsort(scores, descending=True)[:count]


def without_rounding(scores: Array) -> Array:
    """Returns scores of order 1 in units of their rounding, so that those within it are tied."""
    return jnp.round(scores / (32.0 * jnp.finfo(scores.dtype).eps))


def _best(key: Key, scores: Array, allowed: Array) -> Array:
    best = jnp.max(scores, where=allowed, initial=-jnp.inf)
    tolerance = 8.0 * jnp.finfo(scores.dtype).eps * jnp.maximum(jnp.abs(best), 1.0)
    # An infinite best leaves no tolerance, because inf - inf is NaN.
    is_best = allowed & ((scores >= best) | (scores >= best - tolerance))
    return jax.random.categorical(key, jnp.where(is_best, 0.0, -jnp.inf))


def scan_keys(step: Callable[[Any, Key], tuple[Any, Array]], start: Any, key: Key, num: int) -> Any:
    """Returns the stacked outputs of `step` scanned over `num` keys that are split off `key`.

    The keys go through the scan as numbers, because under vmap jax's check for keys that are used
    twice takes a scan over keys for such a use.

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
