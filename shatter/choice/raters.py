"""Raters, populations that answer queries: `(key, query) -> ranks[K]`, a new person every time.

A choice is written as ranks: 1 for the chosen response, 2 for the others that were shown, -1 for
empty slots. Where a person has no answer all ranks are equal, from which nothing is learned.

A utility is `query -> [K]`, log-densities in nats: `table_utility` makes one from a table over the
items of enumerated prompts, and any function of `query.tokens` will do.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.choice.luce import luce_sample
from shatter.choice.plackett_luce import plackett_luce_sample
from shatter.numerics import at_least_float32
from shatter.types import Array, Key, Query, Rater

Utility = Callable[[Query], Array]


def choice_ranks(choice: Array, valid: Array) -> Array:
    """Returns ranks that tell which response was chosen, and no more.

    Args:
      choice: int `[]`, the chosen slot.
      valid: bool `[K]`, false on empty slots.

    Returns:
      int `[K]`: 1 for the chosen, 2 for the others, -1 for empty slots.
    """
    chex.assert_rank([choice, valid], [0, 1])
    checkify.debug_check(valid[choice], "slot {choice} was chosen but is empty", choice=choice)
    return jnp.where(valid, 2 - jax.nn.one_hot(choice, valid.shape[0], dtype=int), -1)


def table_utility(table: Array) -> Utility:
    """Returns a utility that is looked up: `query -> table[query.prompt_id, query.item_ids]`.

    Args:
      table: float `[P, N]`, log-density in nats of every item of every prompt.

    Returns:
      `query -> [K]`, nats.

    Raises:
      AssertionError: if the table does not have two axes.
    """
    chex.assert_rank(table, 2)

    def utility(query: Query) -> Array:
        return table[query.prompt_id][_known(query, table.shape[1])]

    return utility


def luce_rater(utility: Utility) -> Rater:
    """Returns a population with one density q that chooses by Luce's rule.

    `P(choose i) = q(x_i) / sum_k q(x_k)`, q = exp utility.

    Args:
      utility: `query -> [K]`, log q of each response, nats.

    Returns:
      A rater.
    """

    def rater(key: Key, query: Query) -> Array:
        utilities = jnp.where(query.valid, utility(query), -jnp.inf)
        return choice_ranks(luce_sample(key, utilities), query.valid)

    return rater


def plackett_luce_rater(utility: Utility) -> Rater:
    """Returns a population that ranks all responses by Plackett-Luce.

    Args:
      utility: `query -> [K]`, log q of each response, nats.

    Returns:
      A rater whose ranks are 1..K, best first.
    """

    def rater(key: Key, query: Query) -> Array:
        ranking = plackett_luce_sample(key, jnp.where(query.valid, utility(query), -jnp.inf))
        return jnp.where(query.valid, jnp.argsort(_empty_last(ranking)) + 1, -1)

    return rater


def segment_rater(utilities: Utility, log_weights: Array) -> Rater:
    """Returns a population of segments; each query goes to one of them: `sum_g w_g Luce(q_g)`.

    The segment is random, with the weights w. This breaks Luce's independence of irrelevant
    alternatives: with two opposed halves every choice between two is even, and a single Luce model
    fits it by a flat law.

    Args:
      utilities: `query -> [G, K]`, log q_g of each response for each segment, nats.
      log_weights: `[G]`, log w_g, defined up to a shift.

    Returns:
      A rater.
    """

    def rater(key: Key, query: Query) -> Array:
        segment_key, choice_key = jax.random.split(key)
        segment = jax.random.categorical(segment_key, at_least_float32(log_weights))
        return luce_rater(lambda query: utilities(query)[segment])(choice_key, query)

    return rater


def mixture_rater(utilities: Utility, log_weights: Array) -> Rater:
    """Returns a population whose people all have the mixture density: `Luce(sum_g w_g q_g)`.

    Args:
      utilities: `query -> [G, K]`, log q_g of each response, nats; each q_g must be normalised
        over the whole space of documents for the weights to be those of the segments.
      log_weights: `[G]`, log w_g, defined up to a shift.

    Returns:
      A rater.
    """

    def utility(query: Query) -> Array:
        segments = at_least_float32(utilities(query))
        return jax.nn.logsumexp(segments + at_least_float32(log_weights)[:, None], axis=0)

    return luce_rater(utility)


def dichotomy_rater(types: Callable[[Query], Array], share: Array | float) -> Rater:
    """Returns a population of which a share wants messages of type 1, the rest those of type 2.

    Messages of a type are substitutes: a rater picks uniformly among the messages of the wanted
    type, or among all where there is none.

    Source: Xu et al., RLHF and IIA: Perverse Incentives, the dichotomy data,
    https://arxiv.org/abs/2312.01057.

    Args:
      types: `query -> [K]`, 1 or 2, the type of each response.
      share: share of raters who want type 1, between 0 and 1.

    Returns:
      A rater.
    """

    def rater(key: Key, query: Query) -> Array:
        type_key, choice_key = jax.random.split(key)
        wants_first = jax.random.bernoulli(type_key, at_least_float32(share))
        wanted = jnp.where(wants_first, 1, 2)
        liked = (types(query) == wanted) & query.valid
        shown = jnp.where(jnp.any(liked), liked, query.valid)
        choice = jax.random.categorical(choice_key, jnp.where(shown, 0.0, -jnp.inf))
        return choice_ranks(choice, query.valid)

    return rater


def recorded_choice_rater(answers: Array, weights: Array, *, num_items: int) -> Rater:
    """Returns a population of real people who each gave one answer to a prompt.

    For each query one of them is drawn, by weight, among those whose recorded answer is one of the
    responses shown. So `P(i) = s_i / (s_i + s_j)` with the weighted shares s, which is exactly
    Luce's rule; to draw the person before the query would be biased. People with the same answer
    are interchangeable, so an item is drawn by the summed weights of its people.

    Args:
      answers: int `[P, R]`, the item each person chose at each prompt; -1 = no answer.
      weights: float `[R]`, survey weights >= 0; 0 leaves a person out.
      num_items: N, the largest number of items of a prompt.

    Returns:
      A rater. All ranks are equal where nobody gave any of the answers shown.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([answers, weights], [int, float])
    chex.assert_shape(weights, (answers.shape[1],))
    checkify.debug_check(
        jnp.all(answers < num_items),
        f"an answer names no item: expected -1 <= answer < num_items = {num_items}, found {{high}}",
        high=jnp.max(answers),
    )
    weights = at_least_float32(weights)
    rows = jnp.broadcast_to(jnp.arange(answers.shape[0])[:, None], answers.shape)
    item = jnp.where(answers < 0, num_items, answers)  # out of bounds: dropped
    people = jnp.zeros((answers.shape[0], num_items), weights.dtype)
    people = people.at[rows, item].add(jnp.broadcast_to(weights[None], answers.shape), mode="drop")

    def rater(key: Key, query: Query) -> Array:
        known_items = query.valid & (query.item_ids >= 0) & (query.item_ids < num_items)
        counts = people[query.prompt_id][jnp.clip(query.item_ids, 0, num_items - 1)]
        utilities = jnp.where(known_items, jnp.log(counts), -jnp.inf)
        nobody = jnp.all(jnp.isneginf(utilities))
        choice = luce_sample(key, jnp.where(nobody & query.valid, 0.0, utilities))
        ranks = choice_ranks(choice, query.valid)
        return jnp.where(nobody & query.valid, 1, ranks)

    return rater


def recorded_ranking_rater(ranks: Array, weights: Array) -> Rater:
    """Returns a population of real people who each ranked or rated items.

    For each query one of them is drawn, by weight, among those who recorded a rank for every
    response shown. Items that a person rated alike stay tied.

    Args:
      ranks: int `[P, R, N]`, each person's rank of each item, smaller is better; -1 = unknown to
        them.
      weights: float `[R]`, >= 0; 0 leaves a person out.

    Returns:
      A rater. All ranks are equal where nobody ranked all the responses shown.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([ranks, weights], [int, float])
    chex.assert_shape(weights, (ranks.shape[1],))

    def rater(key: Key, query: Query) -> Array:
        items = _known(query, ranks.shape[2])
        recorded = ranks[query.prompt_id][:, items]
        able = jnp.all((recorded >= 0) | ~query.valid[None, :], axis=1)
        person, known = _draw_person(key, able, weights)
        return jnp.where(query.valid, jnp.where(known, recorded[person], 1), -1)

    return rater


def recorded_vote_rater(votes: Array, ties: Array | None = None) -> Rater:
    """Returns a population of recorded votes on pairs; one vote is drawn for each query.

    Args:
      votes: float `[P, N, N]`, `votes[p, i, j]` = how many people preferred item i to item j.
      ties: float `[P, N, N]`, symmetric, how many called i and j equal; none if absent.

    Returns:
      A rater of pairs. Ranks are equal for a vote of "equal", and where nobody voted.

    Raises:
      AssertionError: if the shapes do not fit or a query is not a pair.
    """
    chex.assert_rank(votes, 3)
    chex.assert_type(votes, float)
    votes = at_least_float32(votes)
    tied = jnp.zeros_like(votes) if ties is None else at_least_float32(ties)
    chex.assert_equal_shape([votes, tied])

    def rater(key: Key, query: Query) -> Array:
        chex.assert_shape(query.item_ids, (2,))
        i, j = _known(query, votes.shape[1])
        prompt = query.prompt_id
        counts = jnp.stack([votes[prompt, i, j], votes[prompt, j, i], tied[prompt, i, j]])
        person = jax.random.categorical(key, jnp.log(counts))
        says_nothing = (person == 2) | (jnp.sum(counts) == 0) | ~jnp.all(query.valid)
        ranks = jnp.where(says_nothing, 1, 2 - jax.nn.one_hot(person, 2, dtype=int))
        return jnp.where(query.valid, ranks, -1)

    return rater


def _known(query: Query, num_items: int) -> Array:
    """Returns the items of a query after a check; those of empty slots are 0."""
    shown = jnp.where(query.valid, query.item_ids, 0)
    checkify.debug_check(
        jnp.all((shown >= 0) & (shown < num_items)),
        f"a query names an item outside its pool: expected 0 <= item < {num_items}, found between "
        "{low} and {high}",
        low=jnp.min(shown),
        high=jnp.max(shown),
    )
    return shown


def _empty_last(ranking: Array) -> Array:
    """Returns a permutation from a ranking padded by -1: the missing items come last."""
    num_items = ranking.shape[0]
    present = jnp.any(jax.nn.one_hot(ranking, num_items, dtype=bool), axis=0)
    missing = jnp.argsort(present)  # the absent items first, in order
    num_present = jnp.sum(ranking >= 0)
    slots = jnp.arange(num_items)
    return jnp.where(ranking >= 0, ranking, missing[jnp.maximum(slots - num_present, 0)])


def _draw_person(key: Key, able: Array, weights: Array) -> tuple[Array, Array]:
    """Draws one person by weight among the able; returns whether there is any, too."""
    log_weights = jnp.where(able & (weights > 0), jnp.log(at_least_float32(weights)), -jnp.inf)
    return jax.random.categorical(key, log_weights), jnp.any(able & (weights > 0))
