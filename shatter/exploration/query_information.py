"""Query arms that ask what tells most of the members: by information gain, alone or together.

A member enters by its choice within each query alone, so that `log_probs` may have a shift a member
and query.
"""

import jax
import jax.numpy as jnp

from shatter.exploration.base import (
    prepare_queries,
    scan_keys,
    top,
    without_empty_slots,
    without_rounding,
)
from shatter.exploration.scores import (
    choice_log_probs,
    conditional_information_gain,
    query_information_gain,
    query_variance,
)
from shatter.types import Array, Key


def infomax_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Returns the queries with the largest `query_information_gain`, each judged alone, best first.

    Queries that are alike are chosen together; `joint_infomax_queries` avoids that. Arguments,
    result and errors are those of `QueryArm`.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    scores = without_rounding(query_information_gain(log_probs, valid=valid))
    return top(key, scores, usable, num_queries, distinct=True)


def variance_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Returns the queries with the largest `query_variance`, each judged alone, best first.

    Arguments, result and errors are those of `QueryArm`.
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    scores = without_rounding(query_variance(log_probs, valid=valid))
    return top(key, scores, usable, num_queries, distinct=True)


def joint_infomax_queries(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_queries: int,
    num_outcomes: int = 256,
) -> Array:
    """Returns queries that tell much together, in the order of choice.

    Each adds most to the joint gain of those before it. The first has the largest
    `query_information_gain`; for the others `conditional_information_gain` is estimated from
    sampled answers to the batch so far, those of every member equally often. The joint gain is
    monotone and submodular, so that the greedy batch, apart from the sampling, has at least 1 - 1/e
    of the best batch's. Memory and time: B steps of S M Q K. Other arguments, result and errors are
    those of `QueryArm`; the key samples the answers too.

    Args:
      num_outcomes: S, the number of sampled answers, at least 1 (else a ValueError); rounded up to
        a multiple of M.

    Source: Kirsch et al., BatchBALD, algorithm 1, https://arxiv.org/abs/1906.08158; members as the
    hypotheses are ours.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import exploration
      >>> first, second = jnp.array([-4.0, -4.0, 4.0, 4.0]), jnp.array([-3.0, 3.0, -3.0, 3.0])
      >>> log_odds = jnp.stack([first, first, second], axis=1)  # four members, three queries
      >>> log_probs = jnp.stack([log_odds, jnp.zeros((4, 3))], axis=-1)
      >>> batch = exploration.joint_infomax_queries(jax.random.key(0), log_probs, num_queries=2)
      >>> sorted(batch.tolist()) in ([0, 2], [1, 2])  # not both copies of the first
      True
      >>> gain = lambda *queries: exploration.joint_information_gain(log_probs[:, queries])
      >>> [f"{gain(*pair):.1f} nats" for pair in [(0, 1), (0, 2)]]
      ['0.7 nats', '1.1 nats']
    """
    log_probs, valid, usable = prepare_queries(log_probs, valid, num_queries)
    if num_outcomes < 1:
        raise ValueError(f"num_outcomes must be above 0, found {num_outcomes}")
    log_p = choice_log_probs(log_probs, valid)
    num_members = log_p.shape[0]
    truth = jnp.tile(jnp.arange(num_members), -(-num_outcomes // num_members))

    def ask(state: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], Array]:
        evidence, free = state
        tie_key, answer_key = jax.random.split(key)
        posteriors = jax.nn.softmax(evidence, axis=1)
        gains = conditional_information_gain(log_probs, posteriors, valid=valid)
        query = top(tie_key, without_rounding(gains), free, 1, distinct=True)[0]
        laws = log_p[:, query]
        answers = jax.random.categorical(answer_key, laws[truth])
        return (evidence + laws[:, answers].T, free & (jnp.arange(len(free)) != query)), query

    nothing = jnp.zeros((truth.shape[0], num_members), log_p.dtype)
    queries = scan_keys(ask, (nothing, usable), key, num_queries)
    return without_empty_slots(queries, usable)
