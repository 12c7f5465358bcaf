"""Which B of Q whole queries tell most of the members: information gain, alone and together.

A member enters by its choice within each query, so `log_probs` may have a shift a member and query.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from shatter.choice import luce_log_probs
from shatter.exploration.base import top, without_empty_slots
from shatter.exploration.queries import check_queries, prepare_queries, scan_keys
from shatter.numerics import LOG_ZERO, at_least_float32
from shatter.types import Array, Key

_MOST_OUTCOMES = 2**22


def query_information_gain(log_probs: Array, *, valid: Array | None = None) -> Array:
    """Expected information gain of every query's first choice about the member that is right.

    `EIG_q = mean_m KL(p_m || mean p)`, `p_m(k | q)` Luce's law of the member over the responses;
    for K = 2 `information_gain`, whose sources see.

    Args:
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.

    Returns:
      `[Q]`, nats, between 2 `query_variance` and log M; 0 with fewer than two responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    return _shared_information(_choice_log_probs(log_probs, valid))


def query_variance(log_probs: Array, *, valid: Array | None = None) -> Array:
    """How much the members differ on every query's first choice, `sum_k Var_m p_m(k | q) / 2`.

    For K = 2 this is `Var_m p_m`, p_m the probability of the first, the score of `variance`.

    Args:
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.

    Returns:
      `[Q]`, between 0 and 1/2; 0 with fewer than two responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    p = jnp.exp(_choice_log_probs(log_probs, valid))
    return 0.5 * jnp.sum(jnp.var(p, axis=0), axis=-1)


def joint_information_gain(log_probs: Array, *, valid: Array | None = None) -> Array:
    """Expected information gain of all choices together about the member that is right, in nats.

    `mean_m KL(P_m || mean P)`, `P_m(k_1, ..., k_B) = prod_b p_m(k_b | b)` over the K^B joint
    outcomes: given the member the choices are independent. At most the sum of the queries' own
    gains, and less where they overlap in what they tell.

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
    log_p = _choice_log_probs(log_probs, valid)
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
    """Expected information gain of every query after answers to others, averaged over the answers.

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
    log_p = _choice_log_probs(log_probs, valid)
    chex.assert_shape(posteriors, (None, log_p.shape[0]))
    posteriors = at_least_float32(posteriors)
    p = jnp.exp(log_p)
    own = jnp.mean(jnp.sum(-p * log_p, axis=-1), axis=0, keepdims=True)
    highest = jax.lax.Precision.HIGHEST
    predicted = jnp.einsum("sm,mqk->sqk", posteriors, p, precision=highest)
    # The difference first: the rounding of the mean is then one of gains, not of entropies.
    return jnp.mean(jnp.sum(entr(predicted), axis=-1) - own, axis=0)


def infomax_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """The B queries with the largest `query_information_gain`, each judged alone.

    Queries that are alike are taken together: `joint_infomax_queries` does not.

    Args:
      key: a typed key; breaks ties, among them scores that differ by rounding.
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.

    Returns:
      int `[B]`, query indices, best first.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    scores = _without_rounding(query_information_gain(log_probs, valid=valid))
    return top(key, scores, usable, num_queries, distinct=True)


def variance_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """The B queries with the largest `query_variance`, each judged alone.

    Args:
      key: a typed key; breaks ties, among them scores that differ by rounding.
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.

    Returns:
      int `[B]`, query indices, best first.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    scores = _without_rounding(query_variance(log_probs, valid=valid))
    return top(key, scores, usable, num_queries, distinct=True)


def joint_infomax_queries(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_queries: int,
    num_outcomes: int = 256,
) -> Array:
    """B queries that tell much together: in turn the one that adds most to the joint gain.

    The first has the largest `query_information_gain`; of the others `conditional_information_gain`
    is estimated from sampled answers to the batch so far: a member, each equally often, and its
    choices. The joint gain is monotone and submodular, so that the greedy batch, but for the
    sampling, has at least 1 - 1/e of the best batch's. Memory and time: B steps of S M Q K.

    Source: Kirsch et al., BatchBALD, algorithm 1, https://arxiv.org/abs/1906.08158; members as the
    hypotheses are ours.

    Args:
      key: a typed key; samples the answers, and breaks ties.
      log_probs: `[M, Q, K]`, nats, each member's up to a shift a query.
      valid: bool `[Q, K]`, false on empty slots.
      num_queries: B.
      num_outcomes: S, sampled answers to the batch; rounded up to a multiple of M.

    Returns:
      int `[B]`, query indices, in the order of choice.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if there are fewer than B queries or than two slots, or by num_outcomes.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    if num_outcomes < 1:
        raise ValueError(f"num_outcomes must be above 0, found {num_outcomes}")
    log_p = _choice_log_probs(log_probs, valid)
    num_members = log_p.shape[0]
    truth = jnp.tile(jnp.arange(num_members), -(-num_outcomes // num_members))

    def ask(state: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], Array]:
        evidence, free = state
        tie_key, answer_key = jax.random.split(key)
        posteriors = jax.nn.softmax(evidence, axis=1)
        gains = conditional_information_gain(log_probs, posteriors, valid=valid)
        query = top(tie_key, _without_rounding(gains), free, 1, distinct=True)[0]
        laws = log_p[:, query]
        answers = jax.random.categorical(answer_key, laws[truth])
        return (evidence + laws[:, answers].T, free & (jnp.arange(len(free)) != query)), query

    nothing = jnp.zeros((truth.shape[0], num_members), log_p.dtype)
    queries = scan_keys(ask, (nothing, usable), key, num_queries)
    return without_empty_slots(queries, usable)


def _choice_log_probs(log_probs: Array, valid: Array | None) -> Array:
    """Luce's log-probs `[M, Q, K]`, `LOG_ZERO` on empty slots.

    A query with fewer than two responses tells nothing: all members choose uniformly.
    """
    log_probs, valid = check_queries(log_probs, valid)
    usable = jnp.sum(valid, axis=-1, keepdims=True) >= 2
    utilities = jnp.where(usable[None], jnp.where(valid[None], log_probs, -jnp.inf), 0.0)
    return jnp.maximum(luce_log_probs(utilities), LOG_ZERO)


def _shared_information(log_p: Array) -> Array:
    """`mean_m KL(p_m || mean p)` of laws `[M, ..., X]`, the members' Jensen-Shannon divergence."""
    log_mean = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - jnp.log(log_p.shape[0])
    surprise = jnp.exp(log_p) * (log_p - jnp.broadcast_to(log_mean, log_p.shape))
    return jnp.maximum(jnp.mean(jnp.sum(surprise, axis=-1), axis=0), 0.0)


def _without_rounding(scores: Array) -> Array:
    """Scores of order 1 in units of their rounding: those that differ by it alone are tied."""
    return jnp.round(scores / (32.0 * jnp.finfo(scores.dtype).eps))
