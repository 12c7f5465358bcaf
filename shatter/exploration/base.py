"""What the arms share: the door, draws without repetition, the best set under pair scores."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32
from shatter.types import Array, Key


def prepare(
    log_probs: Array, valid: Array | None, num_responses: int, distinct: bool
) -> tuple[Array, Array]:
    """Checks an arm's arguments; log-probs are then -inf on invalid candidates and there alone.

    In float32 at least, where scores of different candidates rarely tie.
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
    return jnp.where(valid[None, :], known(log_probs), -jnp.inf), valid


def known(log_probs: Array) -> Array:
    """Finite log-probs in float32 at least: what is unknown (NaN) counts as impossible.

    So no score that is made of them is NaN, which would be neither above nor below another and
    would make one candidate be chosen twice.
    """
    log_probs = at_least_float32(log_probs)
    return jnp.where(log_probs > LOG_ZERO, jnp.minimum(log_probs, -LOG_ZERO), LOG_ZERO)


def mixture(log_probs: Array) -> Array:
    """Log-probs `[N]` of the mixture of the members' laws over the candidates.

    A member's log-probs have a free shift, so each is normalised over the candidates first.
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(log_probs, axis=1), axis=0)


def draw(key: Key, utilities: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """K candidates in proportion to exp(utilities), each redrawn until it differs if so asked."""
    utilities = _last_but_before_invalid(utilities, valid)
    if not distinct:
        return jax.random.categorical(key, utilities, shape=(num_responses,))
    noisy = utilities + jax.random.gumbel(key, utilities.shape, utilities.dtype)
    return without_empty_slots(_largest(noisy, num_responses), valid)


def _last_but_before_invalid(scores: Array, valid: Array) -> Array:
    """Scores -inf on invalid candidates alone: a valid one of -inf or NaN has the least float."""
    least = jnp.finfo(scores.dtype).min
    return jnp.where(valid, jnp.where(scores > least, scores, least), -jnp.inf)


def without_empty_slots(indices: Array, valid: Array) -> Array:
    """Replaces invalid candidates, chosen when too few are valid, by a valid one."""
    return jnp.where(valid[indices], indices, jnp.argmax(valid))


def top(key: Key, scores: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """The K best candidates (the best K times, if they may repeat); ties are broken by the key."""
    order = jax.random.permutation(key, scores.shape[0])
    shuffled = _last_but_before_invalid(scores, valid)[order]
    best = order[_largest(shuffled, num_responses if distinct else 1)]
    return without_empty_slots(jnp.broadcast_to(best, (num_responses,)), valid)


def best_set(key: Key, scores: Array, valid: Array, num_responses: int, distinct: bool) -> Array:
    """The best pair under symmetric scores[N, N] >= 0; further responses by the largest sum.

    Scores that differ by rounding alone count as tied, and ties are broken by the key: members
    that agree give a uniformly random pair.
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
    """Indices of the largest scores; `lax.top_k` gathers what is sharded over seeds, a sort not."""
    return jnp.argsort(scores, descending=True)[:count]


def _best(key: Key, scores: Array, allowed: Array) -> Array:
    best = jnp.max(scores, where=allowed, initial=-jnp.inf)
    tolerance = 8.0 * jnp.finfo(scores.dtype).eps * jnp.maximum(jnp.abs(best), 1.0)
    # An infinite best leaves no tolerance: inf - inf is NaN.
    is_best = allowed & ((scores >= best) | (scores >= best - tolerance))
    return jax.random.categorical(key, jnp.where(is_best, 0.0, -jnp.inf))
