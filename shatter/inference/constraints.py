"""Target laws from constraints on moments and on single documents, as GDC defines them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from shatter.inference.importance import LEAST, check_weights
from shatter.numerics import LOG_ZERO, at_least_float32
from shatter.types import Array


def moment_target(ref_log_probs: Array, features: Array, lam: Array) -> Array:
    """Returns the log of the target `P(x) = p0(x) exp(lam . phi(x))` of moment constraints.

    With lam from `fit_moments`, its normalised law has the smallest KL(p || p0) of all laws with
    `E_p phi = mu`.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    https://arxiv.org/abs/2012.11635.

    Args:
      ref_log_probs: `[...]`, log p0, nats.
      features: `[..., F]`, phi of the same documents; numbers or bool.
      lam: `[F]`, nats per unit of each feature.

    Returns:
      `[...]`, log P, unnormalised, nats.

    Raises:
      AssertionError: if the shapes do not fit or `ref_log_probs` or `lam` is not floating.
    """
    chex.assert_type([ref_log_probs, lam], float)
    chex.assert_shape(features, (*ref_log_probs.shape, *lam.shape))
    chex.assert_rank(lam, 1)
    ref_log_probs, features, lam = map(at_least_float32, (ref_log_probs, features, lam))
    tilt = jnp.matmul(features, lam, precision=jax.lax.Precision.HIGHEST)
    return ref_log_probs + tilt


def pointwise_target(ref_log_probs: Array, satisfied: Array) -> Array:
    """Returns the log of the target `P(x) = p0(x) b(x)` of a constraint on every document.

    Normalised, it is p0 given that the constraint holds: the limit mu -> 1 of the moment
    constraint `E_p b = mu`.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    https://arxiv.org/abs/2012.11635.

    Args:
      ref_log_probs: `[...]`, log p0, nats.
      satisfied: bool `[...]`, b of the same documents.

    Returns:
      `[...]`, log P, unnormalised, nats; LOG_ZERO where the constraint is broken.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([ref_log_probs, satisfied], [float, bool])
    chex.assert_equal_shape([ref_log_probs, satisfied])
    return jnp.where(satisfied, at_least_float32(ref_log_probs), LOG_ZERO)


def fit_moments(
    features: npt.ArrayLike,
    moments: npt.ArrayLike,
    *,
    log_weights: npt.ArrayLike | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 200,
    min_share: float = 0.05,
) -> np.ndarray:
    """Returns the lam with `E_p phi = mu`, where `p(x) = p0(x) exp(lam . phi(x)) / Z`.

    It is computed with NumPy in float64. Newton's method with step halving minimises the convex
    `log sum_i w_i exp(lam . phi_i) - lam . mu`, whose gradient is `E_p phi - mu`. If features are
    linearly dependent, lam is not unique, but p is.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    https://arxiv.org/abs/2012.11635, who minimise the squared gap by stochastic gradients.

    Args:
      features: `[N, F]`, phi of samples of p0, or of every document.
      moments: `[F]`, mu.
      log_weights: `[N]`, nats: log p0 of every document of an enumerated space, which makes lam
        exact, or log p0 - log q of samples of q; None = the documents are samples of p0.
      tolerance: largest difference from a wanted moment, as a share of the feature's range.
      max_steps: largest number of Newton steps.
      min_share: warn if the effective sample size of the fitted weights is below this share of N;
        pass 0 for an enumerated space.

    Returns:
      float64 `[F]`, lam, nats per unit of each feature.

    Raises:
      ValueError: if the shapes do not fit, `tolerance` or `max_steps` is not positive, an input is
        NaN or infinite, no weight is above zero, or no law on the given documents has a wanted
        moment or all of them together.
    """
    features, moments = np.asarray(features, float), np.asarray(moments, float)
    if features.ndim != 2 or 0 in features.shape or moments.shape != features.shape[1:]:
        raise ValueError(
            "expected features [N, F] and moments [F], N >= 1 and F >= 1, found shapes "
            f"{features.shape} and {moments.shape}"
        )
    if max_steps < 1 or not tolerance > 0:
        raise ValueError(
            f"expected max_steps >= 1 and tolerance > 0, found {max_steps} and {tolerance}"
        )
    log_weights = np.asarray(np.zeros(len(features)) if log_weights is None else log_weights, float)
    if log_weights.shape != features.shape[:1]:
        raise ValueError(f"expected log weights [{len(features)}], found shape {log_weights.shape}")
    _check_finite(features, moments)
    check_weights(log_weights, min_share=0.0, law_name="the reference")
    possible = log_weights > LEAST
    base = log_weights[possible] - _log_sum_exp(log_weights)
    low, high = features[possible].min(axis=0), features[possible].max(axis=0)
    _check_reachable(moments, low, high)
    spread = np.where(high > low, high - low, 1.0)
    centred = (features[possible] - moments) / spread
    tilt, gap = _minimise_dual(
        base, centred, 1e-3 * tolerance, tolerance, max_steps, floor=base.min() - 1.0
    )
    if not np.abs(gap).max() <= tolerance:
        _, gap = _minimise_dual(base, centred, 1e-6, tolerance, max_steps)
        worst = int(np.abs(gap).argmax())
        raise ValueError(
            "the moments were not reached together by a law on the given documents: expected "
            f"{moments[worst]:.6g} for feature {worst}, found "
            f"{moments[worst] + gap[worst] * spread[worst]:.6g} at the nearest law. Draw more "
            "samples, choose moments nearer to those of the documents, or raise tolerance or "
            "max_steps"
        )
    lam = tilt / spread
    check_weights(log_weights + features @ lam, min_share=min_share, law_name="the fitted target")
    return lam


def _check_finite(features: np.ndarray, moments: np.ndarray) -> None:
    bad = ~np.isfinite(features)
    if bad.any():
        row, feature = np.argwhere(bad)[0]
        raise ValueError(
            f"{bad.sum()} features are NaN or infinite, the first is feature {feature} of sample "
            f"{row}"
        )
    bad = ~np.isfinite(moments)
    if bad.any():
        raise ValueError(f"the moment of feature {bad.argmax()} is {moments[bad.argmax()]}")


def _check_reachable(moments: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Raises a ValueError if a moment is not between the extremes of its feature.

    A feature that is constant may have that constant as its moment.
    """
    constant = (high - low == 0) & (np.abs(moments - low) <= 1e-9 * np.maximum(1.0, np.abs(low)))
    bad = ~(constant | ((low < moments) & (moments < high)))
    if bad.any():
        worst = int(bad.argmax())
        raise ValueError(
            f"feature {worst} cannot have the moment {moments[worst]:.6g}: on the given documents "
            f"its moments lie in the open interval ({low[worst]:.6g}, {high[worst]:.6g}). If only "
            "the documents at an end of the interval are wanted, use pointwise_target"
        )


def _minimise_dual(
    base: np.ndarray,
    centred: np.ndarray,
    penalty: float,
    tolerance: float,
    max_steps: int,
    *,
    floor: float = -np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises `D(tilt) + penalty |tilt|^2 / 2`, where `D = log sum_i w_i exp(tilt . c_i)`.

    The gradient of D is the gap E_p c. If 0 is a weighted mean of the c_i, then `D >= min_i log
    w_i` by Gibbs' inequality. If it is not, D has no lower bound: the search stops below `floor`,
    and the penalty makes the gap the one nearest to 0.

    Returns:
      The tilt and the gap.
    """

    def objective(tilt: np.ndarray) -> float:
        return _log_sum_exp(base + centred @ tilt) + 0.5 * penalty * float(tilt @ tilt)

    tilt = np.zeros(centred.shape[1])
    for _ in range(max_steps):
        scores = base + centred @ tilt
        law = np.exp(scores - _log_sum_exp(scores))
        gap = law @ centred
        slope, value = gap + penalty * tilt, objective(tilt)
        if np.abs(gap).max() <= tolerance or np.abs(slope).max() <= 0.1 * tolerance:
            break
        if value < floor:
            break
        deviations = centred - gap
        curvature = (law[:, None] * deviations).T @ deviations
        curvature += penalty * np.eye(len(tilt))
        step = -np.linalg.lstsq(curvature, slope, rcond=None)[0]
        size = 1.0
        while size > 1e-15:
            if objective(tilt + size * step) <= value + 1e-4 * size * (step @ slope) + 1e-14:
                break
            size /= 2
        tilt = tilt + size * step
    return tilt, gap


def _log_sum_exp(scores: np.ndarray) -> float:
    largest = scores.max()
    return float(largest + np.log(np.exp(scores - largest).sum()))
