"""Thompson-style arms: act by a drawn member's belief. Arguments as in `sampling`."""

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
    """Draws one member; all responses are samples of it, over the candidates.

    Source: Thompson, On the Likelihood that One Unknown Probability Exceeds Another (1933); Russo
    et al., A Tutorial on Thompson Sampling, https://arxiv.org/abs/1707.02038.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
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
    """Double Thompson, sampled form: each response is a sample of a freshly drawn member.

    Without the requirement to differ this is the law of `greedy`, two samples of the mixture; with
    it each response is redrawn, its member too, until it differs, at most 30 times, then uniform
    among the rest.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
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
    """Double Thompson, argmax form: the best candidate of each freshly drawn member.

    A member is redrawn until its best differs from the earlier responses, at most 30 times; then
    the response is uniform among the rest. This form alone has the law P(x is best).

    Source: Wu and Liu, Double Thompson Sampling for Dueling Bandits,
    https://arxiv.org/abs/1604.07101; Dwaracherla et al., Efficient Exploration for LLMs, section
    5.2.2, https://arxiv.org/abs/2402.00396.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    member_key, tie_key, key = jax.random.split(key, 3)
    members = jax.random.randint(member_key, (num_responses, _REDRAWS + 1), 0, log_probs.shape[0])
    scores = log_probs[members]
    is_best = scores == jnp.max(scores, axis=-1, keepdims=True)
    best = jax.random.categorical(tie_key, jnp.where(is_best, 0.0, -jnp.inf))
    return _first_that_differ(key, best, valid, distinct)


def _first_that_differ(key: Key, proposals: Array, valid: Array, distinct: bool) -> Array:
    """From proposals[K, R]: each response the first that is new, else uniform among the rest."""
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
