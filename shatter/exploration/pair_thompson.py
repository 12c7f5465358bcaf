"""Pair arms in Thompson's manner: each response is chosen by a randomly drawn member."""

import jax
import jax.numpy as jnp

from shatter.exploration.base import draw, prepare, without_empty_slots
from shatter.types import Array, Key

_REDRAWS = 30


def thompson(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Draws one member, and all responses from its law over the candidates.

    Arguments, result and errors are those of `PairArm`.

    Source: Thompson, On the Likelihood that One Unknown Probability Exceeds Another (1933); Russo
    et al., A Tutorial on Thompson Sampling, https://arxiv.org/abs/1707.02038.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    member_key, draw_key = jax.random.split(key)
    member = jax.random.randint(member_key, (), 0, log_probs.shape[0])
    return draw(draw_key, log_probs[member], valid, num_responses, distinct)


def double_thompson_sampled(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Draws each response from a freshly drawn member: double Thompson, in its sampled form.

    Where responses may repeat this is the law of `greedy`, samples of the mixture. Where they must
    differ, a response and its member are redrawn until it does, at most 30 times; then the response
    is uniform among the rest. Arguments, result and errors are those of `PairArm`.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    member_key, sample_key, key = jax.random.split(key, 3)
    members = jax.random.randint(member_key, (num_responses, _REDRAWS + 1), 0, log_probs.shape[0])
    samples = jax.random.categorical(sample_key, log_probs[members])
    return _first_that_differ(key, samples, valid, distinct)


def double_thompson(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Takes the best candidate of each freshly drawn member: double Thompson, in its argmax form.

    A member is redrawn until its best candidate differs from the earlier responses, at most 30
    times; then the response is uniform among the rest. This form alone has the law P(x is best).
    Arguments, result and errors are those of `PairArm`.

    Source: Wu and Liu, Double Thompson Sampling for Dueling Bandits,
    https://arxiv.org/abs/1604.07101; Dwaracherla et al., Efficient Exploration for LLMs, section
    5.2.2, https://arxiv.org/abs/2402.00396.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    member_key, tie_key, key = jax.random.split(key, 3)
    members = jax.random.randint(member_key, (num_responses, _REDRAWS + 1), 0, log_probs.shape[0])
    scores = log_probs[members]
    is_best = scores == jnp.max(scores, axis=-1, keepdims=True)
    best = jax.random.categorical(tie_key, jnp.where(is_best, 0.0, -jnp.inf))
    return _first_that_differ(key, best, valid, distinct)


def _first_that_differ(key: Key, proposals: Array, valid: Array, distinct: bool) -> Array:
    """Returns the first new proposal of each row of `[K, R]`, else a uniform draw of the rest."""
    if not distinct:
        return without_empty_slots(proposals[:, 0], valid)
    chosen = jnp.zeros(valid.shape, bool)
    responses: list[Array] = []
    for row, k in zip(proposals, jax.random.split(key, proposals.shape[0]), strict=True):
        is_new = ~chosen[row]
        rest = jax.random.categorical(k, jnp.where(valid & ~chosen, 0.0, -jnp.inf))
        response = jnp.where(jnp.any(is_new), row[jnp.argmax(is_new)], rest)
        chosen |= jax.nn.one_hot(response, valid.shape[0], dtype=bool)
        responses.append(response)
    return without_empty_slots(jnp.stack(responses), valid)
