"""Measures of predicted choices against people who disagree: soft labels, and persons one by one.

The soft label of a query is the share of the people who chose each response. The measures are those
of the shared tasks on learning with disagreements (Leonardelli et al. 2023,
https://arxiv.org/abs/2304.14803, and 2025, https://arxiv.org/abs/2510.08460): cross-entropy against
soft labels, Manhattan distance between soft labels, and error rates of persons. The tasks average
error rates within items first; here they are a person's own.
"""

import jax
import jax.numpy as jnp

from shatter.numerics import at_least_float32
from shatter.types import Array


def soft_cross_entropy(log_probs: Array, shares: Array) -> Array:
    """Returns the cross-entropy of predicted choices against soft labels, `-sum_k s_k log p_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> from shatter import evaluation
      >>> log_probs = jnp.log(jnp.array([0.5, 0.5]))
      >>> round(float(evaluation.soft_cross_entropy(log_probs, jnp.array([0.9, 0.1]))), 4)
      0.6931

    Args:
      log_probs: `[..., K]`, the model's log-probs of the responses, nats.
      shares: `[..., K]`, the share of the people who chose each, summing to 1.

    Returns:
      `[...]`, nats; at least the entropy of the shares.
    """
    log_probs, shares = at_least_float32(log_probs), at_least_float32(shares)
    return -jnp.sum(shares * jnp.where(shares > 0, log_probs, 0.0), axis=-1)


def soft_kl(log_probs: Array, shares: Array) -> Array:
    """Returns KL(shares || model), `sum_k s_k log(s_k / p_k)`.

    Args:
      log_probs: `[..., K]`, the model's log-probs of the responses, nats.
      shares: `[..., K]`, the share of the people who chose each, summing to 1.

    Returns:
      `[...]`, nats. With n people a query it is about `(K - 1) / 2n` for a model that knows the
      population's shares, because those of n people are a sample.
    """
    shares = at_least_float32(shares)
    entropy = jnp.sum(jax.scipy.special.entr(shares), axis=-1)
    return soft_cross_entropy(log_probs, shares) - entropy


def manhattan_distance(log_probs: Array, shares: Array) -> Array:
    """Returns the Manhattan distance between soft labels, `sum_k |p_k - s_k|`.

    Args:
      log_probs: `[..., K]`, the model's log-probs of the responses, nats.
      shares: `[..., K]`, the share of the people who chose each, summing to 1.

    Returns:
      `[...]`, from 0 to 2.
    """
    return jnp.sum(jnp.abs(jnp.exp(at_least_float32(log_probs)) - shares), axis=-1)


def choice_errors(log_probs: Array, choices: Array) -> Array:
    """Returns whether the most probable response is another than the one that was chosen.

    Args:
      log_probs: `[..., K]`, the model's log-probs or utilities of the responses, nats.
      choices: int `[...]`, the responses that people chose.

    Returns:
      `[...]`, 0 or 1; where n responses are most probable and the choice is one of them, 1 - 1/n.
    """
    log_probs = at_least_float32(log_probs)
    best = log_probs == jnp.max(log_probs, axis=-1, keepdims=True)
    hit = jnp.take_along_axis(best, jnp.asarray(choices)[..., None], axis=-1)[..., 0]
    return 1.0 - hit / jnp.sum(best, axis=-1)


def person_means(
    values: Array, persons: Array, *, num_persons: int, weights: Array | None = None
) -> Array:
    """Returns the mean of every person's values.

    Args:
      values: `[N]`, one for each answer.
      persons: int `[N]`, who gave it, from 0 to `num_persons - 1`.
      num_persons: the number P of persons.
      weights: `[N]`, how much each answer counts; None = equally.

    Returns:
      `[P]`; NaN for a person without answers.
    """
    values = at_least_float32(values)
    weights = jnp.ones_like(values) if weights is None else weights
    total = jax.ops.segment_sum(weights * values, persons, num_persons)
    return total / jax.ops.segment_sum(weights, persons, num_persons)


def person_error_rates(
    log_probs: Array, choices: Array, persons: Array, *, num_persons: int
) -> Array:
    """Returns each person's error rate: the share of their choices that the model does not expect.

    Args:
      log_probs: `[N, K]`, the model's log-probs or utilities of the responses, nats.
      choices: int `[N]`, the responses that were chosen.
      persons: int `[N]`, who chose, from 0 to `num_persons - 1`.
      num_persons: the number P of persons.

    Returns:
      `[P]`, from 0 to 1; NaN for a person without answers. Its mean over persons counts everybody
      once, however many answers they gave.
    """
    return person_means(choice_errors(log_probs, choices), persons, num_persons=num_persons)
