"""Importance weights: evidence, expectations, divergence, effective sample size, resampling.

The log weight of a sample x of q is log P(x) - log q(x), in nats, where P = Z p need not be
normalised. The log of a weight of zero is -inf or about LOG_ZERO; NaN and +inf are errors.
"""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32, finite_logs, log_mean_exp
from shatter.types import Array, Key

LEAST = 1e-6 * LOG_ZERO
"""Log weights below this count as zero, even after LOG_ZERO was shifted, doubled or tempered."""


def has_mass(log_weights: Array) -> Array:
    """Returns which weights are above zero, bool `[...]`."""
    return log_weights > LEAST


def log_evidence(log_weights: Array) -> Array:
    """Returns the log of the mean weight: the importance sampling estimate of log Z.

    `log Z_hat = log sum_i exp(log w_i) - log N`. Z_hat is an unbiased estimate of Z; its log is
    below log Z on average.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    https://arxiv.org/abs/2012.11635.

    Args:
      log_weights: `[..., N]`, nats.

    Returns:
      `[...]`, nats; about LOG_ZERO where all weights are zero.

    Raises:
      AssertionError: if the log weights are not floating or have no axis N.
    """
    return log_mean_exp(_prepare(log_weights))


def effective_sample_size(log_weights: Array) -> Array:
    """Returns the effective sample size: `(sum_i w_i)^2 / sum_i w_i^2`, after Kish.

    It depends on the samples that were drawn, not on the mass that they missed.

    Source: Owen, Monte Carlo theory, methods and examples, chapter 9,
    https://artowen.su.domains/mc/Ch-var-is.pdf.

    Args:
      log_weights: `[..., N]`, nats; a common shift does not matter.

    Returns:
      `[...]`, number of samples, between 1 and N; 0 where all weights are zero.

    Raises:
      AssertionError: if the log weights are not floating or have no axis N.
    """
    weights = _normalised(_prepare(log_weights))
    squares = jnp.sum(jnp.square(weights), axis=-1)
    return jnp.where(squares > 0, 1.0 / jnp.where(squares > 0, squares, 1.0), 0.0)


def snis_expectation(log_weights: Array, values: Array) -> Array:
    """Returns the self-normalised importance sampling estimate of an expectation under p.

    `sum_i w_i f(x_i) / sum_i w_i`. It is consistent and has a bias of order 1/N.

    Source: Owen, Monte Carlo theory, methods and examples, chapter 9,
    https://artowen.su.domains/mc/Ch-var-is.pdf.

    Args:
      log_weights: `[..., N]`, nats.
      values: `[..., N]`, f of the samples; where the weight is zero they may be anything, even NaN.

    Returns:
      `[...]`, in the unit of `values`; 0 where all weights are zero (an error under checkify).

    Raises:
      AssertionError: if the shapes differ or the log weights are not floating.
    """
    log_weights = _prepare(log_weights)
    chex.assert_equal_shape([log_weights, values])
    _check_mass(log_weights)
    values = jnp.where(has_mass(log_weights), at_least_float32(values), 0.0)
    return jnp.sum(_normalised(log_weights) * values, axis=-1)


def importance_kl(target_log_probs: Array, log_probs: Array, proposal_log_probs: Array) -> Array:
    """Returns an estimate of KL(p || pi) for an unnormalised target P = Z p, from samples of q.

    `sum_i w_i (log P(x_i) - log pi(x_i)) - log Z_hat`, with self-normalised weights w_i from
    log P - log q, and Z_hat from the same weights. GDC moves its proposal to pi when this estimate
    falls below that of KL(p || q), which has q in the place of pi.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    https://arxiv.org/abs/2012.11635.

    Args:
      target_log_probs: `[..., N]`, log P of samples of q, nats.
      log_probs: `[..., N]`, log pi of the same samples, nats.
      proposal_log_probs: `[..., N]`, log q of the same samples, nats.

    Returns:
      `[...]`, nats; sampling error may make it negative. It is about 1e30 where no sample has mass
      (an error under checkify).

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([target_log_probs, log_probs, proposal_log_probs], float)
    chex.assert_equal_shape([target_log_probs, log_probs, proposal_log_probs])
    target_log_probs = at_least_float32(target_log_probs)
    log_weights = target_log_probs - at_least_float32(proposal_log_probs)
    log_ratio = target_log_probs - finite_logs(log_probs)
    return snis_expectation(log_weights, log_ratio) - log_evidence(log_weights)


def resample(key: Key, log_weights: Array, *, num_samples: int) -> Array:
    """Draws indices in proportion to the weights by systematic resampling.

    One uniform draw places evenly spaced marks on the cumulative weights. The expected number of
    times that sample i appears is exactly `num_samples w_i`, and the number differs from it by less
    than 1.

    Source: Kitagawa, Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models,
    1996, https://doi.org/10.1080/10618600.1996.10474692.

    Args:
      key: a typed key.
      log_weights: `[N]`, nats.
      num_samples: number of indices to draw.

    Returns:
      int `[num_samples]`, indices of samples in ascending order, none of weight zero. If all
      weights are zero (an error under checkify), they count as equal.

    Raises:
      AssertionError: if the log weights are not floating or not `[N]`.
      ValueError: if `num_samples` is not positive.
    """
    chex.assert_rank(log_weights, 1)
    if num_samples < 1:
        raise ValueError(f"resample expects num_samples >= 1, found {num_samples}")
    log_weights = _prepare(log_weights)
    _check_mass(log_weights)
    weights = jax.nn.softmax(log_weights)
    # A parallel cumsum may change by rounding where the weight is zero, so the sums are made
    # monotone and constant there.
    sums = jax.lax.cummax(jnp.where(weights > 0, jnp.cumsum(weights), 0.0))
    start = jax.random.uniform(key, dtype=sums.dtype)
    marks = (start + jnp.arange(num_samples)) / num_samples * sums[-1]
    indices = jnp.searchsorted(sums, marks, side="right")
    last = jnp.searchsorted(sums, sums[-1])  # a mark may be rounded up to the end
    return jnp.minimum(indices, last)


def check_weights(
    log_weights: npt.ArrayLike, *, min_share: float = 0.05, law_name: str = "the target"
) -> float:
    """Raises if weights are invalid, and warns if their effective sample size is small, in NumPy.

    Args:
      log_weights: `[N]`, nats, not traced.
      min_share: warn if the effective sample size is below this share of N; 0 = never.
      law_name: the target law as the messages call it.

    Returns:
      The effective sample size.

    Raises:
      ValueError: if a log weight is NaN or +inf, all weights are zero, or the shape is not `[N]`
        with N >= 1.
    """
    log_weights = np.asarray(log_weights, float)
    if log_weights.ndim != 1 or log_weights.size == 0:
        raise ValueError(f"expected log weights [N], N >= 1, found shape {log_weights.shape}")
    bad = np.isnan(log_weights) | np.isposinf(log_weights)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {bad.size} log weights under {law_name} are NaN or +inf, the first at "
            f"index {bad.argmax()}: check the log-probs that they were computed from"
        )
    largest = log_weights.max()
    if largest <= LEAST:
        raise ValueError(
            f"no sample has mass under {law_name}: the weights of all {bad.size} samples are zero. "
            f"Draw more samples, or from a proposal closer to {law_name}, or forbid less"
        )
    weights = np.exp(log_weights - largest)
    weights /= weights.sum()
    size = float(1.0 / np.square(weights).sum())
    if size < min_share * bad.size:
        warnings.warn(
            f"the effective sample size under {law_name} is {size:.3g} of {bad.size} samples, "
            f"below the share {min_share:g}; the largest normalised weight is {weights.max():.3g}. "
            f"Draw more samples, or from a proposal closer to {law_name}",
            UserWarning,
            stacklevel=2,
        )
    return size


def _prepare(log_weights: Array) -> Array:
    """Returns log weights in float32 at least, with LOG_ZERO in the place of -inf."""
    chex.assert_type(log_weights, float)
    assert log_weights.ndim > 0, "expected log weights [..., N], found a scalar"
    checkify.debug_check(
        ~jnp.any(jnp.isnan(log_weights) | jnp.isposinf(log_weights)),
        "the log weights hold a NaN or +inf",
    )
    return finite_logs(log_weights)


def _normalised(log_weights: Array) -> Array:
    """Returns normalised weights `[..., N]`; all are 0 if no weight is above zero."""
    return jnp.where(has_mass(log_weights), jax.nn.softmax(log_weights, axis=-1), 0.0)


def _check_mass(log_weights: Array) -> None:
    checkify.debug_check(
        jnp.all(jnp.any(has_mass(log_weights), axis=-1)),
        f"no sample has mass: all {log_weights.shape[-1]} weights are zero",
    )
