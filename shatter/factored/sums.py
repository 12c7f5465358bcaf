"""Log-probs of given tokens and divergences, summed over slices of the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp

from shatter.factored.container import Columns, FactoredLogits
from shatter.factored.slices import Slice, finite, over_slices, pull_back
from shatter.types import Array


def target_log_probs(logits: FactoredLogits, targets: Array) -> Array:
    """Returns the log-probs of given tokens: `logits_target - logsumexp logits`.

    Args:
      logits: `[..., V]`.
      targets: int `[...]`, in the vocabulary.

    Returns:
      `[...]`, nats. Logits of -inf count as `shatter.numerics.LOG_ZERO`.
    """
    return _target_log_probs(_flat(logits), targets.ravel()).reshape(targets.shape)


def _flat(logits: FactoredLogits) -> FactoredLogits:
    """Flattens tokens to rows, because XLA on CPUs otherwise copies them for the gradient."""
    return logits.map_rows(lambda leaf: leaf.reshape(-1, leaf.shape[-1]))


@jax.custom_vjp
def _target_log_probs(logits: FactoredLogits, targets: Array) -> Array:
    return _log_probs_forward(logits, targets)[0]


def _log_probs_forward(logits: FactoredLogits, targets: Array) -> tuple[Array, Any]:
    def add(part: Slice, columns: tuple[Columns, ...], sums: Any) -> Any:
        normaliser, chosen = sums
        values = finite(logits.rows, columns[0])
        place = jnp.clip(targets - part.begin, 0, part.numbers.size - 1)
        value = jnp.take_along_axis(values, place[..., None], axis=-1)[..., 0]
        is_here = (targets >= part.begin) & (targets < part.begin + part.numbers.size)
        return _normalise(part, values, normaliser), jnp.where(is_here, value, chosen)

    start = (_start(logits), jnp.zeros(logits.shape[:-1], logits.dtype))
    (top, total), chosen = over_slices((logits,), add, start)
    log_z = jnp.log(total) + top
    return chosen - log_z, (logits, targets, log_z)


def _log_probs_backward(residuals: Any, cotangent: Array) -> tuple[FactoredLogits, None]:
    logits, targets, log_z = residuals

    def slopes(part: Slice, values: Array) -> tuple[Array]:
        is_target = targets[..., None] == part.numbers
        return (is_target - jnp.exp(values - log_z[..., None]),)

    return pull_back((logits,), slopes, cotangent)[0], None


_target_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def kl_divergence(ref: FactoredLogits, own: FactoredLogits) -> Array:
    """Returns KL(ref || own) of the laws that two models' logits l and m define.

    `E[l - m] - logsumexp l + logsumexp m`, the expectation under the first.

    Args:
      ref: `[..., V]`, l.
      own: `[..., V]`, m.

    Returns:
      `[...]`, nats. Logits of -inf count as `shatter.numerics.LOG_ZERO`.
    """
    return _kl_divergence(_flat(ref), _flat(own)).reshape(ref.shape[:-1])


@jax.custom_vjp
def _kl_divergence(ref: FactoredLogits, own: FactoredLogits) -> Array:
    return _kl_forward(ref, own)[0]


def _kl_forward(ref: FactoredLogits, own: FactoredLogits) -> tuple[Array, Any]:
    def add(part: Slice, columns: tuple[Columns, ...], sums: Any) -> Any:
        normaliser, own_normaliser, gap = sums
        values, own_values = finite(ref.rows, columns[0]), finite(own.rows, columns[1])
        new = _normalise(part, values, normaliser)
        weights = part.counted(jnp.exp(values - new[0][..., None]), 0.0)
        gap = gap * jnp.exp(normaliser[0] - new[0]) + jnp.sum(
            weights * (values - own_values), axis=-1
        )
        return new, _normalise(part, own_values, own_normaliser), gap

    start = (_start(ref), _start(own), jnp.zeros(ref.shape[:-1], ref.dtype))
    (top, total), (own_top, own_total), gap = over_slices((ref, own), add, start)
    mean_gap = gap / total
    # Tops and totals apart, because a logsumexp is larger than they and would be rounded more.
    kl = mean_gap - (top - own_top) - (jnp.log(total) - jnp.log(own_total))
    return kl, (ref, own, mean_gap, jnp.log(total) + top, jnp.log(own_total) + own_top)


def _kl_backward(residuals: Any, cotangent: Array) -> tuple[FactoredLogits, ...]:
    ref, own, mean_gap, log_z, own_log_z = residuals

    def slopes(part: Slice, values: Array, own_values: Array) -> tuple[Array, Array]:
        del part
        probs = jnp.exp(values - log_z[..., None])
        own_probs = jnp.exp(own_values - own_log_z[..., None])
        return probs * (values - own_values - mean_gap[..., None]), own_probs - probs

    return pull_back((ref, own), slopes, cotangent)


_kl_divergence.defvjp(_kl_forward, _kl_backward)


def _start(logits: FactoredLogits) -> tuple[Array, Array]:
    """Returns the largest of no logits, and the sum of their exponentials."""
    rows = logits.shape[:-1]
    return jnp.full(rows, -jnp.inf, logits.dtype), jnp.zeros(rows, logits.dtype)


def _normalise(part: Slice, values: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
    """Adds a slice to the largest logit, and to the sum of exponentials of logits minus it."""
    top, total = so_far
    values = part.counted(values, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(values, axis=-1))
    new = jnp.sum(jnp.exp(values - new_top[..., None]), axis=-1)
    return new_top, total * jnp.exp(top - new_top) + new
