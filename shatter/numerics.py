"""Masked sums, and entropies and divergences of laws given by log-probs, finite in every case.

This is the one public place of `kl_divergence`, `total_variation`, `entropy` and `expectation`:
every part of shatter may import it.

Precision: every public function of shatter that takes log-probs, logits, utilities or rewards
raises half precision (float16, bfloat16) to float32 before it computes anything and returns
float32; the gradient has the type of the argument. float32 and float64 stay as they are. Log-probs
that are not floats raise an AssertionError; rewards that are integers become floats.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.types import Array

LOG_ZERO = -1e30
"""The log-prob of an impossible event. It is finite, so that sums and gradients stay finite, and
its `exp` is exactly 0 in every float type."""


def assert_positive(**values: float | Array) -> None:
    """Raises a ValueError if a hyper-parameter is not above zero, or is NaN.

    Numbers and arrays are checked when the function is called, traced values only under `checkify`.

    Args:
      **values: the hyper-parameters by name.

    Raises:
      ValueError: if a value is not above zero; the message has its name and value.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            checkify.debug_check(
                jnp.all(value > 0), f"{name} must be above 0, found {{least}}", least=jnp.min(value)
            )
        elif not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} must be above 0, found {value}")


def at_least_float32(values: float | Array) -> Array:
    """Converts half precision to float32, because sums and exponentials overflow float16.

    Args:
      values: numbers of any type and shape.

    Returns:
      An array of the same shape: float32 for float16 and bfloat16, the default float type for
      integers and bool, and the type of `values` otherwise.
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(float)
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def finite_logs(logs: Array) -> Array:
    """Returns the logs in float32 at least, with `LOG_ZERO` in the place of -inf.

    The gradient of a softmax is NaN at -inf and finite at `LOG_ZERO`.

    Args:
      logs: `[...]`, log-probs, logits or log weights, nats; NaN stays NaN.

    Returns:
      `[...]`, nats.
    """
    return jnp.maximum(at_least_float32(logs), LOG_ZERO)


@jax.custom_jvp
def bounded_exp(log_ratio: Array) -> Array:
    """Returns `exp(log_ratio)`, but at most e^80 in float32 and e^701 in float64.

    Above the bound the derivative is the exponential at the bound, not 0, so that a gradient still
    points the right way. The bound is a factor e^8 below the largest float, which leaves room for
    the sum over a batch.

    Args:
      log_ratio: `[...]`, nats, float32 at least; +inf is above the bound like any other number.

    Returns:
      `[...]`, finite.
    """
    largest = float(np.floor(np.log(float(jnp.finfo(log_ratio.dtype).max)))) - 8.0
    return jnp.exp(jnp.minimum(log_ratio, largest))


bounded_exp.defjvps(lambda tangent, ratio, log_ratio: ratio * tangent)


def masked_sum(values: Array, mask: Array, *, axis: int = -1) -> Array:
    """Returns the sum of the values under a mask: `sum_t mask_t values_t`.

    Values outside the mask change neither the sum nor its gradient, even if they are NaN or
    infinite.

    Args:
      values: `[..., T]`.
      mask: bool `[..., T]`, true on the values that count.
      axis: the axis to sum over.

    Returns:
      `[...]`; 0 where the mask is empty.
    """
    return jnp.sum(jnp.where(mask, at_least_float32(values), 0.0), axis=axis)


def masked_mean(values: Array, mask: Array, *, axis: int = -1) -> Array:
    """Returns the mean of the values under a mask.

    Args:
      values: `[..., T]`.
      mask: bool `[..., T]`, true on the values that count.
      axis: the axis to average over.

    Returns:
      `[...]`; 0 where the mask is empty.
    """
    return masked_sum(values, mask, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def kl_divergence(log_p: Array, log_q: Array) -> Array:
    """Returns the Kullback-Leibler divergence of two laws on the same finite space.

    `KL(p || q) = sum_x p(x) (log p(x) - log q(x))`, with `0 log 0 = 0`.

    Args:
      log_p: `[..., D]`, log-probs of p in nats; may be -inf.
      log_q: `[..., D]`, log-probs of q in nats.

    Returns:
      `[...]`, nats; inf where log q is -inf and p is above 0, however small p is there.
    """
    log_p, log_q = map(at_least_float32, (log_p, log_q))
    possible = _possible(log_p)
    log_ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(_probs(log_p) * log_ratio, axis=-1)


def total_variation(log_p: Array, log_q: Array) -> Array:
    """Returns the total variation of two laws on the same finite space, `sum_x |p - q| / 2`.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      log_q: `[..., D]`, log-probs in nats.

    Returns:
      `[...]`, between 0 and 1.
    """
    log_p, log_q = map(at_least_float32, (log_p, log_q))
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def entropy(log_p: Array) -> Array:
    """Returns the entropy of a law on a finite space: `-sum_x p(x) log p(x)`, `0 log 0 = 0`.

    Args:
      log_p: `[..., D]`, log-probs in nats; may be -inf.

    Returns:
      `[...]`, nats.
    """
    return -expectation(log_p, log_p)


def expectation(log_p: Array, values: Array) -> Array:
    """Returns the expectation under a law on a finite space: `sum_x p(x) f(x)` where p(x) > 0.

    Args:
      log_p: `[..., D]`, log-probs in nats.
      values: `[..., D]`, f of every point; values where p(x) = 0 may be anything.

    Returns:
      `[...]`, in the unit of `values`.
    """
    log_p, values = map(at_least_float32, (log_p, values))
    return jnp.sum(_probs(log_p) * jnp.where(_possible(log_p), values, 0.0), axis=-1)


def log_mean_exp(logs: Array, *, axis: int = -1) -> Array:
    """Returns the log of the mean of exponentials: `log (1/N) sum_i exp(logs_i)`.

    Of members' log-probs it is the log-prob of their mixture, of log weights the log evidence.

    Args:
      logs: `[..., N]`, nats.
      axis: the axis to average over.

    Returns:
      `[...]`, nats.
    """
    logs = at_least_float32(logs)
    return jax.nn.logsumexp(logs, axis=axis) - jnp.log(logs.shape[axis])


def _possible(log_p: Array) -> Array:
    """Bool, true where p(x) > 0 and where the log-prob is NaN, so that a NaN reaches the sum."""
    return ~(log_p <= LOG_ZERO)


def _probs(log_p: Array) -> Array:
    """Returns `exp(log_p)`, which is 0 only where x is impossible.

    An underflow to 0 times a log-ratio of infinity would be NaN.
    """
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
    "log_mean_exp",
    "masked_mean",
    "masked_sum",
    "total_variation",
]
