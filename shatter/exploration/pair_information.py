"""Pair arms that ask where the members disagree: information gain and two variances.

Only ties are random. Give each query of a batch its own candidates, or the same pair is asked again
and again.
"""

import jax
import jax.numpy as jnp

from shatter.exploration.base import best_set, prepare
from shatter.exploration.scores import information_gain, log_odds
from shatter.types import Array, Key


def infomax(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Returns the pair of candidates with the largest expected information gain.

    The score is `information_gain`. Above two responses the best pair grows by the candidate with
    the largest summed score. Arguments, result and errors are those of `PairArm`.

    Source: Dwaracherla et al., Efficient Exploration for LLMs, infomax,
    https://arxiv.org/abs/2402.00396.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import exploration
      >>> log_probs = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]))  # of two members
      >>> pair = exploration.infomax(jax.random.key(0), log_probs)
      >>> sorted(pair.tolist())  # the two candidates on whose order the members disagree most
      [0, 2]
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    return best_set(key, information_gain(log_probs), valid, num_responses, distinct)


def variance(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Returns the pair on whose outcome the members differ most, by `Var_m p_m`.

    p_m is the member's probability that the first is chosen. Above two responses the best pair
    grows by the candidate with the largest summed score. Arguments, result and errors are those of
    `PairArm`.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    scores = jnp.var(jax.nn.sigmoid(log_odds(log_probs)), axis=0)
    return best_set(key, scores, valid, num_responses, distinct)


def log_ratio_variance(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Returns the pair on whose log-ratio the members differ most.

    By `Var_m(log pi_m(x) - log pi_m(y))`. Unlike `variance` it also asks about pairs of which all
    members are sure. Above two responses the best pair grows by the candidate with the largest
    summed score. Arguments, result and errors are those of `PairArm`.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    odds = log_odds(log_probs)
    # Relative to the first member, so that members that agree have the variance 0 at any size of
    # the odds.
    scores = jnp.var(odds - odds[:1], axis=0)
    return best_set(key, scores, valid, num_responses, distinct)
