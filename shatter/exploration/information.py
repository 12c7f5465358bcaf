"""Arms that ask where the members disagree: information gain and two variances.

Deterministic but for ties: within one batch give each query its own candidates, or the same pair is
asked again and again. Arguments as in `sampling`.
"""

import chex
import jax
import jax.numpy as jnp

from shatter.exploration.base import best_set, prepare
from shatter.numerics import finite_logs
from shatter.types import Array, Key


def information_gain(log_probs: Array) -> Array:
    """Expected information gain of every pair about the member that is right, in nats.

    `EIG_ij = H(mean_m p_m) - mean_m H(p_m)`, `p_m = sigmoid(log pi_m(x_i) - log pi_m(x_j))` the
    member's probability that i is chosen, H the binary entropy: the Jensen-Shannon divergence of
    the members' predictions, computed as `mean_m KL(p_m || mean p)`, which does not cancel.

    Source: Lindley, On a Measure of the Information Provided by an Experiment (1956); Houlsby et
    al., Bayesian Active Learning for Classification and Preference Learning,
    https://arxiv.org/abs/1112.5745.

    Args:
      log_probs: `[M, N]`, nats, each member's up to a shift; -inf = impossible to that member.

    Returns:
      `[N, N]`, nats, symmetric, 0 on the diagonal, >= 2 times the variance of p_m.

    Raises:
      AssertionError: if `log_probs` is not a matrix.
    """
    log_odds = _log_odds(log_probs)
    log_p, log_not_p = jax.nn.log_sigmoid(log_odds), jax.nn.log_sigmoid(-log_odds)
    p, not_p = jnp.exp(log_p), jnp.exp(log_not_p)
    surprise = p * (log_p - _log_mean(log_p)) + not_p * (log_not_p - _log_mean(log_not_p))
    return jnp.maximum(jnp.mean(surprise, axis=0), 0.0)


def infomax(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """The pair with the largest expected information gain among the candidates.

    Source: Dwaracherla et al., Efficient Exploration for LLMs, infomax,
    https://arxiv.org/abs/2402.00396; `information_gain` for the score.

    Args:
      key: a typed key; breaks ties.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K; above 2 the best pair grows by the candidate with the largest summed score.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
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
    """The pair on whose outcome the members differ most, `Var_m p_m`.

    p_m is the member's probability that the first is chosen.

    Args:
      key: a typed key; breaks ties.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K; above 2 the best pair grows by the candidate with the largest summed score.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    scores = jnp.var(jax.nn.sigmoid(_log_odds(log_probs)), axis=0)
    return best_set(key, scores, valid, num_responses, distinct)


def log_ratio_variance(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """The pair whose log-ratio the members dispute most, `Var_m(log pi_m(x) - log pi_m(y))`.

    Unlike `variance` it also asks about pairs of which all members are sure.

    Args:
      key: a typed key; breaks ties.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K; above 2 the best pair grows by the candidate with the largest summed score.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    log_odds = _log_odds(log_probs)
    # Seen from the first member, members that agree have the variance 0 at any size of the odds.
    scores = jnp.var(log_odds - log_odds[:1], axis=0)
    return best_set(key, scores, valid, num_responses, distinct)


def _log_odds(log_probs: Array) -> Array:
    """`[M, N, N]`, finite."""
    chex.assert_rank(log_probs, 2)
    finite = finite_logs(log_probs)
    return finite[:, :, None] - finite[:, None, :]


def _log_mean(log_p: Array) -> Array:
    log_mean = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - jnp.log(log_p.shape[0])
    return jnp.broadcast_to(log_mean, log_p.shape)
