"""Sums under masks and divergences between laws given by their log-probs, finite at the edges.

Precision, in every public function of shatter that takes log-probs, logits, utilities or rewards:
half precision (float16, bfloat16) is raised to float32 before anything is computed, and what is
returned is float32; gradients come back in the type of their argument. float32 and float64 stay as
they are. Log-probs that are no floats are refused; integers as rewards become floats.
"""

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


def at_least_float32(values: float | Array) -> Array:
    """Raises half precision to float32, so that sums and exponentials have room.

    Args:
      values: numbers of any type and shape.

    Returns:
      float32 for float16 and bfloat16, the default float for integers and bool; else as it was.
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(float)
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def finite_logs(logs: Array) -> Array:
    """Logs in float32 at least, -inf raised to `LOG_ZERO`: what softmax and its gradient can bear.

    Args:
      logs: `[...]`, log-probs, logits or log weights, nats; a NaN stays one.

    Returns:
      `[...]`.
    """
    return jnp.maximum(at_least_float32(logs), LOG_ZERO)


@jax.custom_jvp
def bounded_exp(log_ratio: Array) -> Array:
    """Returns `exp(log_ratio)`, held at e^80 in float32 and at e^701 in float64.

    Held, not cut off: the slope stays that of the exponential at the bound, so that a gradient
    still points the right way. The bound leaves a factor e^8 below the largest float, for the sum
    over a batch.

    Args:
      log_ratio: `[...]`, nats, float32 at least; +inf counts as any number above the bound.

    Returns:
      `[...]`, finite.
    """
    largest = float(np.floor(np.log(float(jnp.finfo(log_ratio.dtype).max)))) - 8.0
    return jnp.exp(jnp.minimum(log_ratio, largest))


bounded_exp.defjvps(lambda tangent, ratio, log_ratio: ratio * tangent)


def masked_sum(values: Array, mask: Array, *, axis: int = -1) -> Array:
    """Sums the values under a mask: `sum_t mask_t values_t`.

    What lies outside the mask does no harm, NaN and infinities included, in the value and in the
    gradient.

    Args:
      values: `[..., T]`.
      mask: bool `[..., T]`, true on what counts.
      axis: the axis to sum over.

    Returns:
      `[...]`; 0 where nothing counts.
    """
    return jnp.sum(jnp.where(mask, at_least_float32(values), 0.0), axis=axis)


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
      `[...]`, nats; inf where q excludes (-inf) what p does not, however rare that is.
    """
    log_p, log_q = map(at_least_float32, (log_p, log_q))
    possible = _possible(log_p)
    log_ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(_probs(log_p) * log_ratio, axis=-1)


def total_variation(log_p: Array, log_q: Array) -> Array:
    """Total variation of two laws on the same finite space, `sum_x |p(x) - q(x)| / 2`.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      log_q: `[..., D]`, log-probs in nats.

    Returns:
      `[...]`, between 0 and 1.
    """
    log_p, log_q = map(at_least_float32, (log_p, log_q))
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def entropy(log_p: Array) -> Array:
    """Entropy of a law on a finite space, `-sum_x p(x) log p(x)`, with `0 log 0 = 0`.

    Args:
      log_p: `[..., D]`, log-probs in nats; may be -inf.

    Returns:
      `[...]`, nats.
    """
    return -expectation(log_p, log_p)


def expectation(log_p: Array, values: Array) -> Array:
    """Expectation under a law on a finite space, `sum_x p(x) f(x)` over the x with p(x) > 0.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      values: `[..., D]`, f at every point.

    Returns:
      `[...]`, in the unit of `values`.
    """
    log_p, values = map(at_least_float32, (log_p, values))
    return jnp.sum(_probs(log_p) * jnp.where(_possible(log_p), values, 0.0), axis=-1)


def _possible(log_p: Array) -> Array:
    """Where p(x) > 0; an unknown log-prob counts as possible, so that a NaN is seen in the sum."""
    return ~(log_p <= LOG_ZERO)


def _probs(log_p: Array) -> Array:
    """`exp(log_p)`, 0 on what is impossible alone: underflow times infinity would be NaN."""
    tiny = jnp.finfo(log_p.dtype).tiny
    return jnp.where(_possible(log_p), jnp.maximum(jnp.exp(log_p), tiny), 0.0)


__all__ = [
    "LOG_ZERO",
    "assert_positive",
    "at_least_float32",
    "bounded_exp",
    "entropy",
    "expectation",
    "finite_logs",
    "kl_divergence",
    "masked_mean",
    "masked_sum",
    "total_variation",
]
