"""How members predict together, and the Gaussian priors that they are drawn from."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import at_least_float32, log_mean_exp
from shatter.types import Array, Key, Params


def mixture_log_probs(log_probs: Array, *, axis: int = 0) -> Array:
    """Returns the log-probs of the members' mixture, `log (1/M) sum_m exp log_probs_m`.

    It is how members predict together: by the mean of their probabilities, not of their logits.

    Args:
      log_probs: `[M, ...]`, each member's log-probs of the same events, nats.
      axis: the axis of the members.

    Returns:
      `[...]`, nats.
    """
    return log_mean_exp(log_probs, axis=axis)


def anchor_penalty(params: Params, anchor: Params, prior_scale: float | Array) -> Array:
    """Returns minus the log density of a Gaussian prior: `|theta - theta_m|^2 / (2 sigma^2)`.

    Args:
      params: a pytree of arrays, theta.
      anchor: the same pytree, theta_m.
      prior_scale: sigma > 0, in the unit of the parameters.

    Returns:
      `[]`, nats.
    """
    chex.assert_trees_all_equal_shapes(params, anchor)
    gap = lambda a, b: at_least_float32(a) - at_least_float32(b)
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(gap(a, b))), params, anchor)
    return jax.tree.reduce(jnp.add, squares) / (2.0 * prior_scale**2)


def gaussian_draws(
    key: Key, params: Params, prior_scale: float | Array, num_members: int
) -> Params:
    """Draws independent members around parameters: `theta_m = theta_0 + sigma eps_m`.

    Args:
      key: a typed key.
      params: a pytree of floating arrays, theta_0.
      prior_scale: sigma >= 0.
      num_members: M.

    Returns:
      The pytree with a leading axis M on every leaf.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        leaf[None] + prior_scale * jax.random.normal(k, (num_members, *leaf.shape), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


class _Search(NamedTuple):
    """A search for a scale; the scales are logarithms.

    Attributes:
      step: how many spreads were computed.
      low: a scale that is too small.
      high: a scale that is too large.
      scale: at which the spread is computed next.
      last: at which it was computed last.
      error: the logarithm of the spread there over the target.
    """

    step: Array
    low: Array
    high: Array
    scale: Array
    last: Array
    error: Array


def prior_scale_for(
    spread: Callable[[Array], Array],
    target: float | Array,
    *,
    low: float = 1e-4,
    high: float = 1e2,
    num_steps: int = 20,
    tolerance: float = 5e-4,
) -> Array:
    """Finds the prior scale at which members spread as wanted before there is data (ours).

    A scale of parameters is hard to choose; the standard deviation of the members' log-odds of a
    pair is not. At 1 nat the odds of a typical member differ from even ones like .73 to .27. The
    scale is found by secants of the logarithms, which take few steps because the spread of
    parameters near a base is nearly proportional to the scale, and by bisection where they fail.

    Args:
      spread: `(prior_scale) -> []`, the spread of drawn members, which grows with the scale, for
        example `shatter.evaluation.disagreement` on pairs of a pool.
      target: the wanted spread, in the same unit.
      low: a scale that is too small.
      high: a scale that is too large.
      num_steps: the largest number of times that the spread is computed.
      tolerance: the relative error of the spread at which it is found.

    Returns:
      `[]`, the scale; within the bounds even where the target is not.
    """

    def is_open(search: _Search) -> Array:
        return (search.step < num_steps) & ~(jnp.abs(search.error) <= tolerance)

    def narrow(search: _Search) -> _Search:
        scale = search.scale
        error = jnp.log(spread(jnp.exp(scale)) / target).astype(scale.dtype)
        low = jnp.where(error < 0, scale, search.low)
        high = jnp.where(error < 0, search.high, scale)
        slope = jnp.where(search.step, (error - search.error) / (scale - search.last), 1.0)
        secant, middle = scale - error / slope, 0.5 * (low + high)
        # False where it is not finite; a step that did not halve the error is followed by a middle.
        is_good = (low < secant) & (secant < high) & (jnp.abs(error) < 0.5 * jnp.abs(search.error))
        return _Search(search.step + 1, low, high, jnp.where(is_good, secant, middle), scale, error)

    low_end, high_end = jnp.log(jnp.asarray(low, float)), jnp.log(jnp.asarray(high, float))
    middle = 0.5 * (low_end + high_end)
    none = jnp.full_like(middle, jnp.inf)
    start = _Search(jnp.zeros((), int), low_end, high_end, middle, middle, none)
    found = jax.lax.while_loop(is_open, narrow, start)
    return jnp.exp(jnp.where(jnp.abs(found.error) <= tolerance, found.last, found.scale))
