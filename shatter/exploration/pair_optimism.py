"""Pair arms by what the best may be: upper bounds, optimistic gaps, regret against information."""

import jax
import jax.numpy as jnp

from shatter.exploration.base import best_set, prepare, top
from shatter.exploration.scores import information_gain
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

    Args:
      coefficient: c, at least 0.

    Source: Auer, Using Confidence Bounds for Exploitation-Exploration Trade-offs (2002), for the
    principle; the bound from an ensemble is ours.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    mean, deviation = moments(log_probs, valid)
    return top(key, mean + coefficient * deviation, valid, num_responses, distinct)


def delta_ucb(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
    coefficient: float | Array = 1.0,
) -> Array:
    """Returns the pair with the largest optimistic gap in quality.

    The gap of an ordered pair is the upper bound of the first less the lower bound of the second,
    so that of a pair is `|mean(x) - mean(y)| + c (std(x) + std(y))`, mean and std over members, c =
    `coefficient` >= 0. Each member is normalised over the candidates first, as in `ucb`. A
    candidate that all members find impossible has the largest gap to any other. Above two responses
    the best pair grows by the candidate with the largest summed gap. Other arguments, result and
    errors are those of `PairArm`.

    Args:
      coefficient: c, at least 0.

    Source: Melikidze et al., ActiveUltraFeedback, DeltaUCB, https://arxiv.org/abs/2603.09692; there
    the bounds are of a reward, here of log-probs.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    gaps = optimistic_gaps(*moments(log_probs, valid), coefficient)
    return best_set(key, gaps, valid, num_responses, distinct)


def information_directed(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Returns the pair with the least squared regret a nat of information.

    It minimises `regret^2 / gain`: the regret of a pair is
    `mean_m [max_x log pi_m(x) - (log pi_m(x_i) + log pi_m(x_j)) / 2]`, the gain its
    `information_gain`, which is about the right member and not about the best candidate alone.
    Where no pair tells anything, as with one member, the pair is uniform among the valid
    candidates. Above two responses the best pair grows by the candidate with the largest sum of
    `gain / regret^2`. Only ties are random. Arguments, result and errors are those of `PairArm`.

    Source: Russo and Van Roy, Learning to Optimize via Information-Directed Sampling,
    https://arxiv.org/abs/1403.5556; Kirschner and Krause, Information Directed Sampling and Bandits
    with Heteroscedastic Noise, https://arxiv.org/abs/1801.09667, for the deterministic form. The
    regret of a pair as the mean of its two is that of dueling bandits.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    regret = regrets(log_probs, valid)
    pairs = 0.5 * (regret[:, None] + regret[None, :])
    allowed = valid[:, None] & valid[None, :] & ~jnp.eye(valid.shape[0], dtype=bool)
    scores = information_rate(information_gain(log_probs), pairs, allowed)
    return best_set(key, scores, valid, num_responses, distinct)


def moments(log_probs: Array, valid: Array) -> tuple[Array, Array]:
    """Returns the mean and the standard deviation `[N]` of members normalised over what is valid.

    Args:
      log_probs: `[M, N]`, -inf where not valid, finite elsewhere.
      valid: bool `[N]`.

    Returns:
      The mean and the standard deviation over members, nats; finite.
    """
    laws = jnp.where(valid[None, :], jax.nn.log_softmax(log_probs, axis=1), 0.0)
    # Relative to the highest member, so that members that agree have the deviation 0 at any size of
    # the log-probs; in units of the largest gap, so that no square overflows.
    highest = jnp.max(laws, axis=0)
    unit = jnp.maximum(highest - jnp.min(laws, axis=0), 1.0)
    gaps = (laws - highest[None]) / unit[None]
    return highest + unit * jnp.mean(gaps, axis=0), unit * jnp.std(gaps, axis=0)


def optimistic_gaps(mean: Array, deviation: Array, coefficient: float | Array) -> Array:
    """Returns `|mean_i - mean_j| + c (std_i + std_j)` as `[..., N, N]`, 0 on the diagonal."""
    between = jnp.abs(mean[..., :, None] - mean[..., None, :])
    both = deviation[..., :, None] + deviation[..., None, :]
    same = jnp.broadcast_to(jnp.eye(mean.shape[-1], dtype=bool), both.shape)
    return jnp.where(same, 0.0, between + coefficient * both)


def regrets(log_probs: Array, valid: Array) -> Array:
    """Returns how far each candidate is below a member's best, the mean over members, `[N]`."""
    best = jnp.max(log_probs, axis=1, keepdims=True)
    return jnp.where(valid, jnp.mean(jnp.where(valid[None], best - log_probs, 0.0), axis=0), 0.0)


def information_rate(gain: Array, regret: Array, allowed: Array) -> Array:
    """Returns `gain / regret^2` in units of the largest that is allowed.

    Gains that are rounding alone count as 0.
    """
    eps = jnp.finfo(gain.dtype).eps
    # In units of the least regret, so that nothing underflows that matters.
    least = jnp.maximum(jnp.min(regret, where=allowed, initial=jnp.inf), eps)
    rate = gain / jnp.square(jnp.maximum(regret, eps) / least)
    rate = jnp.where(allowed & (gain > 32.0 * eps), rate, 0.0)
    largest = jnp.max(rate)
    return rate / jnp.where(largest > 0.0, largest, 1.0)
