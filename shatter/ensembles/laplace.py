"""Laplace's approximation for utilities that are linear in features, under Luce's choice."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from shatter.numerics import at_least_float32
from shatter.types import Array, Key

_EXACT = jax.lax.Precision.HIGHEST
_HALVINGS = 16  # of the line search


class Laplace(NamedTuple):
    """A Gaussian belief about the parameters of a linear utility.

    Attributes:
      mean: `[P]`, the most probable parameters.
      covariance: `[P, P]`, the inverse of the curvature there.
    """

    mean: Array
    covariance: Array


def fit_laplace(
    features: Array,
    shares: Array,
    *,
    valid: Array | None = None,
    weights: Array | None = None,
    prior_scale: float | Array,
    start: Array | None = None,
    num_steps: int = 20,
) -> Laplace:
    """Fits a linear utility to choices, and says how sure the fit is.

    The mean minimises `sum_n w_n sum_k -s_nk log p_nk + |theta|^2 / (2 sigma^2)`, with p_n Luce's
    choice by the utilities `x_nk . theta`; the covariance is `laplace_covariance` there. The loss
    is convex and has one minimum, found by Newton steps that stop at the minimum on their line, so
    that every step goes down. A fit to a few more choices needs fewer steps from the fit before.

    Source: MacKay, The Evidence Framework Applied to Classification Networks (1992).

    Args:
      features: floating `[N, K, P]`, of the responses of N queries.
      shares: `[N, K]`, >= 0, which part of the choices each response got: one-hot for one choice,
        .5 and .5 for a tie. Counts serve as well: a row of sum c has c times the weight.
      valid: bool `[N, K]`, false on empty slots; all true if None.
      weights: `[N]`, w >= 0, 0 for rows that are not there; 1 if None.
      prior_scale: sigma > 0, of the parameters.
      start: `[P]`, the parameters to start from; zeros if None.
      num_steps: of Newton's method.

    Returns:
      The mean and the covariance, in float32 at least.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    features, valid, weights = _prepare(features, valid, weights)
    chex.assert_shape(shares, features.shape[:2])
    shares = jnp.where(valid, at_least_float32(shares), 0.0)
    totals = weights * jnp.sum(shares, axis=-1)
    start = jnp.zeros(features.shape[-1], features.dtype) if start is None else start
    chex.assert_shape(start, features.shape[-1:])

    counts = weights[:, None] * shares

    def step(mean: Array, _: None) -> tuple[Array, None]:
        utilities = _product(features, mean)
        pull = counts - totals[:, None] * _law(utilities, valid)
        slope = jnp.einsum("nk,nkp->p", pull, features, precision=_EXACT) - mean / prior_scale**2
        curvature = _curvature(features, utilities, valid, totals, prior_scale)
        direction = cho_solve(cho_factor(curvature), slope)
        change = _product(features, direction)

        def goes_up(length: Array) -> Array:
            pull = counts - totals[:, None] * _law(utilities + length * change, valid)
            prior = jnp.sum((mean + length * direction) * direction) / prior_scale**2
            return jnp.sum(pull * change) < prior

        return mean + _line_minimum(goes_up, change.dtype) * direction, None

    mean, _ = jax.lax.scan(step, start.astype(features.dtype), length=num_steps)
    utilities = _product(features, mean)
    covariance = laplace_covariance(
        features, utilities, valid=valid, weights=totals, prior_scale=prior_scale
    )
    return Laplace(mean, covariance)


def laplace_covariance(
    features: Array,
    utilities: Array,
    *,
    valid: Array | None = None,
    weights: Array | None = None,
    prior_scale: float | Array,
) -> Array:
    """Returns the covariance of the parameters by Laplace's approximation.

    `(sum_n w_n sum_k p_k (g_k - g)(g_k - g)' + I / sigma^2)^-1`, with p Luce's choice by the
    utilities of query n, g_k the Jacobian of utility k, and g = sum_k p_k g_k. For utilities that
    are linear in the parameters it is the exact curvature; otherwise the generalised Gauss-Newton
    one, which has no negative directions.

    Args:
      features: floating `[N, K, P]`, the features, or the Jacobian of the utilities.
      utilities: `[N, K]`, nats, at the point of the approximation.
      valid: bool `[N, K]`, false on empty slots; all true if None.
      weights: `[N]`, w >= 0, choices a query; 1 if None.
      prior_scale: sigma > 0, of the parameters.

    Returns:
      `[P, P]`, in float32 at least.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    features, valid, weights = _prepare(features, valid, weights)
    chex.assert_shape(utilities, features.shape[:2])
    curvature = _curvature(features, at_least_float32(utilities), valid, weights, prior_scale)
    inverse = cho_solve(cho_factor(curvature), jnp.eye(len(curvature), dtype=curvature.dtype))
    return 0.5 * (inverse + inverse.T)


def draw_members(key: Key, mean: Array, covariance: Array, num_members: int) -> Array:
    """Draws members from a Gaussian belief about parameters, which may be singular.

    Args:
      key: a typed key.
      mean: floating `[P]`.
      covariance: `[P, P]`.
      num_members: M.

    Returns:
      `[M, P]`.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_rank(mean, 1)
    chex.assert_shape(covariance, (len(mean), len(mean)))
    variances, directions = jnp.linalg.eigh(at_least_float32(covariance))
    root = directions * jnp.sqrt(jnp.maximum(variances, 0.0))[None]
    noise = jax.random.normal(key, (num_members, len(mean)), root.dtype)
    return mean[None] + jnp.einsum("mq,pq->mp", noise, root, precision=_EXACT)


def _prepare(
    features: Array, valid: Array | None, weights: Array | None
) -> tuple[Array, Array, Array]:
    """Returns features that are 0 on empty slots, and the defaults of the others."""
    chex.assert_rank(features, 3)
    chex.assert_type(features, float)
    num_queries, num_responses, _ = features.shape
    valid = jnp.ones((num_queries, num_responses), bool) if valid is None else valid
    chex.assert_shape(valid, (num_queries, num_responses))
    features = jnp.where(valid[..., None], at_least_float32(features), 0.0)
    weights = jnp.ones(num_queries, features.dtype) if weights is None else weights
    chex.assert_shape(weights, (num_queries,))
    return features, valid, at_least_float32(weights)


def _product(features: Array, parameters: Array) -> Array:
    """Returns the utilities `[N, K]` that linear parameters give."""
    return jnp.einsum("nkp,p->nk", features, parameters, precision=_EXACT)


def _line_minimum(goes_up: Callable[[Array], Array], dtype: Any) -> Array:
    """Returns the length between 0 and 1 from which a convex function goes up, by bisection."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        up = goes_up(middle)
        return jnp.where(up, low, middle), jnp.where(up, middle, high)

    bounds = (jnp.zeros((), dtype), jnp.ones((), dtype))
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
    return jnp.where(goes_up(bounds[1]), low, 1.0)


def _law(utilities: Array, valid: Array) -> Array:
    """Returns Luce's choice among the valid responses, 0 where there is none."""
    return jax.nn.softmax(jnp.where(valid, utilities, -1e30), axis=-1) * valid


def _curvature(
    features: Array, utilities: Array, valid: Array, weights: Array, prior_scale: float | Array
) -> Array:
    """Returns the inverse of `laplace_covariance`."""
    law = _law(utilities, valid)
    centre = jnp.einsum("nk,nkp->np", law, features, precision=_EXACT)
    root = jnp.sqrt(weights[:, None] * law)
    rows = (root[..., None] * (features - centre[:, None])).reshape(-1, features.shape[-1])
    product = jnp.einsum("xp,xq->pq", rows, rows, precision=_EXACT)
    return product + jnp.eye(features.shape[-1], dtype=product.dtype) / prior_scale**2
