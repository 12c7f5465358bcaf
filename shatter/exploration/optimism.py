"""Optimism: candidates that may be good. Arguments as in `sampling`."""

import jax
import jax.numpy as jnp

from shatter.exploration.base import prepare, top
from shatter.types import Array, Key


def ucb(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
    coefficient: float | Array = 1.0,
) -> Array:
    """The highest upper confidence bounds, `mean_m + c std_m` of the members' log-probs.

    Each member is normalised over the candidates first, for its log-probs have a free shift.
    Deterministic but for ties: within one batch give each query its own candidates.

    Source: Auer, Using Confidence Bounds for Exploitation-Exploration Trade-offs (2002), for the
    principle; the bound from an ensemble is ours.

    Args:
      key: a typed key; breaks ties.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.
      coefficient: c >= 0; where some members find a candidate impossible its bound is above all
        others if c exceeds `1 / sqrt(M - 1)`, for one such member of M, and else below.

    Returns:
      int `[K]`, candidate indices, best first.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    laws = jnp.where(valid[None, :], jax.nn.log_softmax(log_probs, axis=1), 0.0)
    # Seen from the highest member, members that agree have the deviation 0 at any size of the laws;
    # in units of the largest gap no square overflows.
    highest = jnp.max(laws, axis=0)
    unit = jnp.maximum(highest - jnp.min(laws, axis=0), 1.0)
    gaps = (laws - highest[None]) / unit[None]
    bound = highest + unit * (jnp.mean(gaps, axis=0) + coefficient * jnp.std(gaps, axis=0))
    return top(key, bound, valid, num_responses, distinct)
