"""Scores: how much the members would tell of themselves by a pair, a query, a batch of queries.

A score chooses nothing. The arms of `pair_information` and `query_information` do so by them, and a
user can by their own rule, for example across prompts.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import entr, rel_entr

from shatter.choice import luce_log_probs
from shatter.exploration.base import check_queries
from shatter.numerics import LOG_ZERO, at_least_float32, finite_logs, log_mean_exp
from shatter.types import Array

_MOST_OUTCOMES = 2**22


def information_gain(log_probs: Array) -> Array:
    """Returns the expected information gain of every pair about which member is right, in nats.

    `EIG_ij = H(mean_m p_m) - mean_m H(p_m)`, `p_m = sigmoid(log pi_m(x_i) - log pi_m(x_j))` the
    member's probability that i is chosen, H the binary entropy. It is the Jensen-Shannon divergence
    of the members' predictions, and computed as `mean_m KL(p_m || mean p)`, which does not cancel.

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
    odds = log_odds(log_probs)
    log_p, log_not_p = jax.nn.log_sigmoid(odds), jax.nn.log_sigmoid(-odds)
    return jnp.maximum(jnp.mean(_surprise(log_p) + _surprise(log_not_p), axis=0), 0.0)


def law_information_gain(log_probs: Array, laws: Array) -> Array:
    """Returns what every pair's answer is expected to tell of a document drawn from the mixture.

    It is the mutual information of the answer and the document, in nats. With w_m(x) the
    probability of member m given that it said x,

        I_ij = sum_x P(x) KL(p(i | x) || mean_m p_m),   p(i | x) = sum_m w_m(x) p_m,

    `p_m = sigmoid(log pi_m(x_i) - log pi_m(x_j))`, P the members' mixture. By the chain of answer,
    member and document it is at most `information_gain`. Memory: N^2 X.

    Source: Lindley, On a Measure of the Information Provided by an Experiment (1956); its target,
    the law, is ours.

    Args:
      log_probs: `[M, N]`, nats, each member's up to a shift; -inf = impossible to that member.
      laws: `[M, X]`, nats, each member's log-probs of the documents, up to a shift a member.

    Returns:
      `[N, N]`, nats, symmetric, 0 on the diagonal, >= 0.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_shape(laws, (log_probs.shape[0], None))
    wins = jax.nn.sigmoid(log_odds(log_probs))
    log_laws = jax.nn.log_softmax(finite_logs(laws), axis=1)
    documents = jnp.exp(log_mean_exp(log_laws, axis=0))
    members = jax.nn.softmax(log_laws, axis=0)
    highest = jax.lax.Precision.HIGHEST
    told = jnp.einsum("mx,mij->ijx", members, wins, precision=highest)
    expected = jnp.mean(wins, axis=0)[..., None]
    surprise = rel_entr(told, jnp.maximum(expected, jnp.finfo(told.dtype).tiny))
    first = jnp.einsum("x,ijx->ij", documents, surprise, precision=highest)
    return jnp.maximum(first + first.T, 0.0)


def query_information_gain(log_probs: Array, *, valid: Array | None = None) -> Array:
    """Returns the expected information gain of every query's first choice about the right member.

    `EIG_q = mean_m KL(p_m || mean p)`, `p_m(k | q)` the member's Luce law over the responses. For
    K = 2 it is `information_gain`, which names the sources.

    Args:
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.

    Returns:
      `[Q]`, nats, between 2 `query_variance` and log M; 0 with fewer than two responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    return _shared_information(choice_log_probs(log_probs, valid))


def query_variance(log_probs: Array, *, valid: Array | None = None) -> Array:
    """Returns how much the members differ on every query's first choice.

    `sum_k Var_m p_m(k | q) / 2`, `p_m(k | q)` the member's Luce law. For K = 2 this is `Var_m p_m`,
    p_m the probability of the first, the score of `variance`.

    Args:
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.

    Returns:
      `[Q]`, between 0 and 1/2; 0 with fewer than two responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    p = jnp.exp(choice_log_probs(log_probs, valid))
    return 0.5 * jnp.sum(jnp.var(p, axis=0), axis=-1)


def joint_information_gain(log_probs: Array, *, valid: Array | None = None) -> Array:
    """Returns the expected information gain of all choices together about the right member, nats.

    `mean_m KL(P_m || mean P)`, `P_m(k_1, ..., k_B) = prod_b p_m(k_b | b)` over the K^B joint
    outcomes, because given the member the choices are independent. It is at most the sum of the
    queries' own gains, and less where the queries overlap in what they tell.

    Source: Kirsch et al., BatchBALD, https://arxiv.org/abs/1906.08158; members as the hypotheses
    are ours.

    Args:
      log_probs: `[M, B, K]`, nats, each member's up to a shift a query.
      valid: bool `[B, K]`, false on empty slots.

    Returns:
      `[]`, nats, between 0 and log M.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are more than 2^22 joint outcomes.
    """
    log_p = choice_log_probs(log_probs, valid)
    num_members, num_queries, num_slots = log_p.shape
    if num_slots**num_queries > _MOST_OUTCOMES:
        raise ValueError(
            f"{num_queries} queries of {num_slots} slots have {num_slots}^{num_queries} joint "
            f"outcomes, more than the {_MOST_OUTCOMES} that are enumerated: ask of fewer queries"
        )
    joint = jnp.zeros((num_members, 1), log_p.dtype)
    for query in range(num_queries):
        joint = (joint[:, :, None] + log_p[:, query, None, :]).reshape(num_members, -1)
    return _shared_information(joint)


def conditional_information_gain(
    log_probs: Array, posteriors: Array, *, valid: Array | None = None
) -> Array:
    """Returns every query's expected information gain after answers to others, their mean.

    `mean_s H(sum_m w_sm p_m) - mean_m H(p_m)`, w_s the members' probabilities after the answers s.
    With s from the law of the answers to a batch it is, without bias, what a query adds to the
    batch's `joint_information_gain`. (On average w_s is 1 / M. Where s is sampled, keeping 1 / M in
    the second term halves the noise of differences between queries.)

    Args:
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      posteriors: `[S, M]`, each row the members' probabilities after equally likely answers.
      valid: bool `[Q, K]`, false on empty slots.

    Returns:
      `[Q]`, nats, below 0 by sampling alone; with all rows 1 / M it is `query_information_gain`.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    log_p = choice_log_probs(log_probs, valid)
    chex.assert_shape(posteriors, (None, log_p.shape[0]))
    posteriors = at_least_float32(posteriors)
    p = jnp.exp(log_p)
    own = jnp.mean(jnp.sum(-p * log_p, axis=-1), axis=0, keepdims=True)
    highest = jax.lax.Precision.HIGHEST
    predicted = jnp.einsum("sm,mqk->sqk", posteriors, p, precision=highest)
    # The difference comes before the mean, whose rounding is then one of gains, not of entropies.
    return jnp.mean(jnp.sum(entr(predicted), axis=-1) - own, axis=0)


def log_odds(log_probs: Array) -> Array:
    """Returns each member's log-odds of every pair, `[M, N, N]`, finite."""
    chex.assert_rank(log_probs, 2)
    finite = finite_logs(log_probs)
    return finite[:, :, None] - finite[:, None, :]


def choice_log_probs(log_probs: Array, valid: Array | None) -> Array:
    """Returns Luce's log-probs `[M, Q, K]`, `LOG_ZERO` on empty slots.

    A query with fewer than two responses tells nothing, so that all members choose uniformly.
    """
    log_probs, valid = check_queries(log_probs, valid)
    usable = jnp.sum(valid, axis=-1, keepdims=True) >= 2
    utilities = jnp.where(usable[None], jnp.where(valid[None], log_probs, -jnp.inf), 0.0)
    return jnp.maximum(luce_log_probs(utilities), LOG_ZERO)


def _shared_information(log_p: Array) -> Array:
    """Returns `mean_m KL(p_m || mean p)` of laws `[M, ..., X]`, their Jensen-Shannon divergence."""
    return jnp.maximum(jnp.mean(jnp.sum(_surprise(log_p), axis=-1), axis=0), 0.0)


def _surprise(log_p: Array) -> Array:
    """Returns `p_m (log p_m - log mean p)` of each member and event, from log-probs `[M, ...]`."""
    return jnp.exp(log_p) * (log_p - log_mean_exp(log_p, axis=0)[None])
