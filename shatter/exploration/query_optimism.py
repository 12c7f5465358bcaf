"""Query arms by what the best may be: optimistic gaps, regret against information.

They compare utilities across queries, so that each member may have one shift only.
"""

import jax.numpy as jnp

from shatter.exploration.base import prepare_queries, top, without_rounding
from shatter.exploration.pair_optimism import (
    information_rate,
    moments,
    optimistic_gaps,
    regrets,
)
from shatter.exploration.scores import query_information_gain
from shatter.numerics import masked_mean
from shatter.types import Array, Key


def delta_ucb_queries(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_queries: int,
    coefficient: float | Array = 1.0,
) -> Array:
    """Returns the queries with the largest optimistic gaps in quality, best first.

    The gap of a query is the largest among its pairs of responses: `delta_ucb`, for whole queries,
    with each member normalised over all responses of the pool. Other arguments, result and errors
    are those of `QueryArm`.

    Args:
      coefficient: c, at least 0.

    Source: Melikidze et al., ActiveUltraFeedback, DeltaUCB, https://arxiv.org/abs/2603.09692; for
    queries of more than two responses ours.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    mean, deviation = moments(_pool(log_probs, valid), valid.reshape(-1))
    gaps = optimistic_gaps(mean.reshape(valid.shape), deviation.reshape(valid.shape), coefficient)
    both = valid[:, :, None] & valid[:, None, :]
    scores = jnp.max(gaps, axis=(1, 2), where=both, initial=0.0)
    unit = jnp.maximum(jnp.max(scores, where=usable, initial=0.0), 1.0)
    return top(key, without_rounding(scores / unit), usable, num_queries, distinct=True)


def information_directed_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Returns the queries with the least squared regret a nat of information, best first.

    It minimises `regret^2 / gain`: the regret of a query is how far its responses are below the
    best of the pool, the mean over members and responses, the gain its `query_information_gain`:
    `information_directed`, for whole queries. Arguments, result and errors are those of `QueryArm`.

    Source: Russo and Van Roy, Learning to Optimize via Information-Directed Sampling,
    https://arxiv.org/abs/1403.5556; for whole queries ours.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    of_responses = regrets(_pool(log_probs, valid), valid.reshape(-1)).reshape(valid.shape)
    gain = query_information_gain(log_probs, valid=valid)
    scores = information_rate(gain, masked_mean(of_responses, valid), usable)
    return top(key, without_rounding(scores), usable, num_queries, distinct=True)


def _pool(log_probs: Array, valid: Array) -> Array:
    """Returns the log-probs of all responses of the pool, `[M, Q K]`, -inf on empty slots."""
    return jnp.where(valid[None], log_probs, -jnp.inf).reshape(log_probs.shape[0], -1)
