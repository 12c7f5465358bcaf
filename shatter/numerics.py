"""Sums under masks and divergences between laws given by their log-probs, finite at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.types import Array

LOG_ZERO = -1e30
"""The log-prob of what cannot happen: finite, so that sums and gradients stay finite, and `exp` of
it is exactly 0 in every float type."""


def assert_positive(**values: float | Array) -> None:
    """Refuses hyper-parameters that are not above zero, NaN included.

    Numbers and arrays are checked at once, traced values under `checkify`.

    Args:
      **values: by name.

    Raises:
      ValueError: naming the hyper-parameter and the value found.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            checkify.debug_check(
                jnp.all(value > 0), f"{name} must be above 0, found {{least}}", least=jnp.min(value)
            )
        elif not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} must be above 0, found {value}")


def masked_sum(values: Array, mask: Array, *, axis: int = -1) -> Array:
    """Sums the values under a mask: `sum_t mask_t values_t`.

    What lies outside the mask does no harm, NaN and infinities included, in the value and in the
    gradient. Half-precision values are summed in float32.

    Args:
      values: `[..., T]`.
      mask: bool `[..., T]`, true on what counts.
      axis: the axis to sum over.

    Returns:
      `[...]`; 0 where nothing counts.
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.sum(jnp.where(mask, values.astype(dtype), 0.0), axis=axis)


def masked_mean(values: Array, mask: Array, *, axis: int = -1) -> Array:
    """Averages the values under a mask; 0 where nothing counts.

    Args:
      values: `[..., T]`.
      mask: bool `[..., T]`, true on what counts.
      axis: the axis to average over.

    Returns:
      `[...]`.
    """
    return masked_sum(values, mask, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def kl_divergence(log_p: Array, log_q: Array) -> Array:
    """Kullback-Leibler divergence of two laws on the same finite space.

    `KL(p || q) = sum_x p(x) (log p(x) - log q(x))`, with `0 log 0 = 0`.

    Args:
      log_p: `[..., D]`, log-probs of p in nats; may be -inf.
      log_q: `[..., D]`, log-probs of q in nats.

    Returns:
      `[...]`, nats.
    """
    possible = log_p > LOG_ZERO
    log_ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * log_ratio, axis=-1)


def total_variation(log_p: Array, log_q: Array) -> Array:
    """Total variation of two laws on the same finite space, `sum_x |p(x) - q(x)| / 2`.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      log_q: `[..., D]`, log-probs in nats.

    Returns:
      `[...]`, between 0 and 1.
    """
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def entropy(log_p: Array) -> Array:
    """Entropy of a law on a finite space, `-sum_x p(x) log p(x)`, with `0 log 0 = 0`.

    Args:
      log_p: `[..., D]`, log-probs in nats; may be -inf.

    Returns:
      `[...]`, nats.
    """
    return -expectation(log_p, jnp.where(log_p > LOG_ZERO, log_p, 0.0))


def expectation(log_p: Array, values: Array) -> Array:
    """Expectation under a law on a finite space, `sum_x p(x) f(x)` over the x with p(x) > 0.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      values: `[..., D]`, f at every point.

    Returns:
      `[...]`, in the unit of `values`.
    """
    return jnp.sum(jnp.exp(log_p) * jnp.where(log_p > LOG_ZERO, values, 0.0), axis=-1)


__all__ = [
    "LOG_ZERO",
    "assert_positive",
    "entropy",
    "expectation",
    "kl_divergence",
    "masked_mean",
    "masked_sum",
    "total_variation",
]
