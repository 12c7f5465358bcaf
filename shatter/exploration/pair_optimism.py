"""Pair arms by optimism: candidates that may turn out to be the best."""

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
    """Returns the candidates with the highest upper confidence bounds, best first.

    The bound is `mean_m + c std_m` of the members' log-probs, c = `coefficient` >= 0. Each member
    is normalised over the candidates first, because its log-probs have a free shift. Where one
    member of M finds a candidate impossible, its bound is above all others if c exceeds
    `1 / sqrt(M - 1)`, and else below.

    Only ties are random, so give each query of a batch its own candidates. Other arguments, result
    and errors are those of `PairArm`.

    Source: Auer, Using Confidence Bounds for Exploitation-Exploration Trade-offs (2002), for the
    principle; the bound from an ensemble is ours.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    laws = jnp.where(valid[None, :], jax.nn.log_softmax(log_probs, axis=1), 0.0)
    # Relative to the highest member, so that members that agree have the deviation 0 at any size of
    # the log-probs; in units of the largest gap, so that no square overflows.
    highest = jnp.max(laws, axis=0)
    unit = jnp.maximum(highest - jnp.min(laws, axis=0), 1.0)
    gaps = (laws - highest[None]) / unit[None]
    bound = highest + unit * (jnp.mean(gaps, axis=0) + coefficient * jnp.std(gaps, axis=0))
    return top(key, bound, valid, num_responses, distinct)
