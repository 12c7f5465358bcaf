"""Pair arms that ask where the members disagree: information gains and variances.

Only ties are random. Give each query of a batch its own candidates, or the same pair is asked again
and again.
"""

import jax
import jax.numpy as jnp

from shatter.exploration.base import best_set, finite_scores, mixture, prepare
from shatter.exploration.scores import information_gain, law_information_gain, log_odds
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


def law_infomax(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
    laws: Array | None = None,
) -> Array:
    """Returns the pair whose answer tells most of a document drawn from the members' mixture.

    The score is `law_information_gain`. Above two responses the best pair grows by the candidate
    with the largest summed score. It is here for comparison: with few members, what an answer seems
    to tell of most documents is chance. Other arguments, result and errors are those of `PairArm`.

    Args:
      laws: `[M, X]`, each member's log-probs of the documents, for example of all, up to a shift a
        member; the valid candidates' if None. NaN counts as impossible.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    scores = law_information_gain(log_probs, log_probs if laws is None else finite_scores(laws))
    return best_set(key, scores, valid, num_responses, distinct)


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


def mass_weighted_variance(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Returns the pair of largest log-ratio variance, weighted by p (1 - p) and by its mass.

    By `Var_m(log pi_m(x) - log pi_m(y)) p (1 - p) (P(x) P(y))^(1/4)`, p the mean over members of
    the probability that the first is chosen, P the members' mixture over the candidates: a cheap
    relative of `v_optimal` that sums over no texts. Above two responses the best pair grows by the
    candidate with the largest summed score. Arguments, result and errors are those of `PairArm`.
    The score is ours.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    odds = log_odds(log_probs)
    wins = jnp.mean(jax.nn.sigmoid(odds), axis=0)
    law = mixture(log_probs)
    # Relative to the likeliest, so that the rounding of the score does not depend on how many
    # documents there are.
    root = jnp.exp(0.25 * (law - jnp.max(law, where=valid, initial=-jnp.inf)))
    root = jnp.where(valid, root, 0.0)
    spread = jnp.minimum(jnp.var(odds - odds[:1], axis=0), jnp.finfo(odds.dtype).max)
    scores = spread * wins * wins.T * root[:, None] * root[None, :]
    return best_set(key, scores, valid, num_responses, distinct)
