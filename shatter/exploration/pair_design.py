"""Pair arms of V-optimal design: the pair, or the batch of pairs, that narrows the law most."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.exploration.base import best_set, mixture, prepare
from shatter.exploration.beliefs import Belief, scores_of
from shatter.exploration.v_optimality import (
    law_belief,
    law_weights,
    learn,
    pair_drops,
    query_contrasts,
    relative,
)
from shatter.types import Array, Key


def v_optimal(
    key: Key,
    log_probs: Array | Belief,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
    law: Array | None = None,
) -> Array:
    """Returns the pair whose answer is expected to lower most the variance of the predicted law.

    The score of a pair is `(p (1 - p) / s^2) sum_x w(x) (C(x, i) - C(x, j))^2`, C the covariance of
    the texts' log-probs, w a law over the texts. The texts x are those that `log_probs` is about:
    the candidates alone, or further texts that are not valid, which are weighted but not asked
    about: all documents, or samples of the mixture. Above two responses the best pair grows by the
    candidate with the largest summed score. Draw the candidates from the mixture at temperature 2:
    it is the allocation that the weighted variance asks for, and untempered the law's mass counts
    twice. Where all scores are 0, as with one member, the pair is uniform among the valid
    candidates. Covariances of a belief that are not finite count as 0 and are errors under
    checkify. Other arguments, result and errors are those of `PairArm`.

    Source: see `shatter.exploration.v_optimality`.

    Args:
      log_probs: `[M, N]` of members, or a `Belief` about N texts, for example by Laplace.
      law: `[N]`, log-probs of w, normalised or not; if None, what is predicted of the valid
        candidates: the members' mixture, or the softmax of the belief's mean. Texts of NaN or -inf
        have no weight.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import exploration
      >>> log_probs = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]))  # of two members
      >>> pair = exploration.v_optimal(jax.random.key(0), log_probs)
      >>> sorted(pair.tolist())
      [0, 2]
    """
    belief, weights, valid = _believe(log_probs, valid, law, num_responses, distinct)
    scores = pair_drops(belief, weights, jnp.arange(weights.shape[0]))
    scores = relative(scores, valid[:, None] & valid[None, :])
    return best_set(key, scores, valid, num_responses, distinct)


def v_optimal_batch(
    key: Key,
    log_probs: Array | Belief,
    candidates: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    law: Array | None = None,
    same: Array | None = None,
) -> Array:
    """Returns one query from each row of candidates, each given what those before it will teach.

    The first is that of `v_optimal`; after each query the covariance loses what its answer will
    teach, whatever it is. So a batch does not ask the same thing over and over. The three forms
    differ in the texts T that `log_probs` is about: all documents, whose law is the mixture; the
    candidates and samples of the mixture; or the candidates alone.

    Args:
      key: a typed key; it breaks ties.
      log_probs: `[M, T]` of members, or a `Belief` about T texts.
      candidates: int `[B, N]`, the texts that each query may ask about.
      valid: bool `[B, N]`, false on empty slots; none is empty if None.
      num_responses: K, how many responses a query has; they differ.
      law: `[T]`, log-probs of the law w over the texts, -inf on texts that are only asked about; if
        None, what is predicted of the texts that are valid candidates of any query. So for all
        documents pass the members' mixture, for samples of the mixture 0 on the samples.
      same: bool `[T, T]`, where two texts are one document; see `members_belief`.

    Returns:
      int `[B, K]`, positions in the rows of `candidates`. In a row with fewer than K valid
      candidates, which is an error under checkify, some repeat.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if K is below 2 or above N.
    """
    chex.assert_rank(candidates, 2)
    if not 2 <= num_responses <= candidates.shape[1]:
        raise ValueError(
            f"num_responses must be from 2 to the {candidates.shape[1]} candidates of a query, "
            f"found {num_responses}"
        )
    valid = jnp.ones(candidates.shape, bool) if valid is None else jnp.asarray(valid)
    chex.assert_equal_shape([candidates, valid])
    checkify.debug_check(
        jnp.all(jnp.sum(valid, axis=1) >= num_responses),
        f"{num_responses} responses are wanted of every row, found {{valid}} valid candidates",
        valid=jnp.min(jnp.sum(valid, axis=1)),
    )
    num_texts = scores_of(log_probs).shape[1]
    askable = jnp.zeros(num_texts, bool).at[candidates].max(valid)
    belief, weights, _ = _believe(log_probs, askable, law, 2, False, same)
    everyone = jnp.ones(num_responses, bool)

    def ask(belief: Belief, row: tuple[Array, Array, Array]) -> tuple[Belief, Array]:
        number, texts, free = row
        scores = relative(pair_drops(belief, weights, texts), free[:, None] & free[None, :])
        chosen = best_set(jax.random.fold_in(key, number), scores, free, num_responses, True)
        slots = texts[chosen]
        own = belief.covariance[slots[:, None], slots[None, :]]
        contrasts, _ = query_contrasts(belief.mean[slots], own, everyone)
        return belief._replace(covariance=learn(belief.covariance, slots, contrasts)), chosen

    rows = (jnp.arange(candidates.shape[0]), candidates, valid)
    return jax.lax.scan(ask, belief, rows)[1]


def _believe(
    log_probs: Array | Belief,
    valid: Array | None,
    law: Array | None,
    num_responses: int,
    distinct: bool,
    same: Array | None = None,
) -> tuple[Belief, Array, Array]:
    """Checks the arguments of an arm; returns the centred belief, the weights, `valid`."""
    if isinstance(log_probs, Belief):
        chex.assert_shape(log_probs.covariance, (log_probs.mean.shape[0],) * 2)
    usable, valid = prepare(scores_of(log_probs), valid, num_responses, distinct)
    weights = law_weights(mixture(usable) if law is None else law)
    chex.assert_shape(weights, valid.shape)
    return law_belief(log_probs, valid | (weights > 0), weights, same), weights, valid
