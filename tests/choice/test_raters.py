import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import choice
from shatter.types import Query, Rater, item_query

NUM_DRAWS = 20_000

Law = dict[tuple[int, ...], float]
"""Ranks -> their probability."""


def query(*item_ids: int, prompt_id: int = 0, empty: tuple[int, ...] = ()) -> Query:
    """A query about items of a pool; the slots in `empty` show nothing and hold no item."""
    size = len(item_ids)
    valid = ~np.isin(np.arange(size), empty)
    items = np.where(valid, item_ids, -1)
    tokens, mask = np.zeros((size, 2), int), np.ones((size, 2), bool)
    return Query(np.asarray(prompt_id), tokens, mask, items, valid)


def draw(rater: Rater, queries: list[Query], seed: int) -> np.ndarray:
    """Ranks `[Q, NUM_DRAWS, K]`, in one compiled call."""

    @jax.jit
    def answers(key: jax.Array, queries: Query) -> jax.Array:
        keys = jax.random.split(key, (len(queries.prompt_id), NUM_DRAWS))
        return jax.vmap(jax.vmap(rater, in_axes=(0, None)))(keys, queries)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *queries)
    return np.asarray(answers(jax.random.key(seed), stacked))


def assert_law(ranks: np.ndarray, law: Law) -> None:
    """Frequencies are the law up to 4.5 standard deviations, and nothing else occurs."""
    assert sum(law.values()) == pytest.approx(1.0)
    rows, counts = np.unique(ranks, axis=0, return_counts=True)
    found = dict(zip(map(tuple, rows.tolist()), counts / len(ranks), strict=True))
    assert set(found) <= {outcome for outcome, p in law.items() if p > 0}
    for outcome, p in law.items():
        bound = 4.5 * np.sqrt(p * (1 - p) / len(ranks)) + 1e-6
        assert abs(found.get(outcome, 0.0) - p) < bound, (outcome, p, found)


def assert_laws(rater: Rater, queries: list[Query], laws: list[Law], *, seed: int) -> None:
    for ranks, law in zip(draw(rater, queries, seed), laws, strict=True):
        assert_law(ranks, law)


def choice_law(probabilities: list[float | None]) -> Law:
    """Of ranks that tell the chosen response; None = an empty slot."""
    slots = range(len(probabilities))
    return {
        tuple(-1 if probabilities[k] is None else 2 - (k == chosen) for k in slots): p
        for chosen, p in enumerate(probabilities)
        if p is not None
    }


def luce(*strengths: float) -> list[float]:
    return list(np.array(strengths) / sum(strengths))


def as_table(table: list[list[float]]) -> choice.raters.Utility:
    return choice.table_utility(jnp.asarray(np.log(table), jnp.float32))


# --- one population -------------------------------------------------------------------------------


def test_choice_ranks():
    valid = jnp.array([True, True, False, True])
    np.testing.assert_array_equal(choice.choice_ranks(jnp.array(1), valid), [2, 1, -1, 2])


def test_luce_rater():
    rater = choice.luce_rater(as_table([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]]))
    queries = [
        query(0, 1, 2, prompt_id=1),
        query(3, 1, 2, prompt_id=1),
        query(0, 1, 3),
        query(0, 1, 3, prompt_id=1, empty=(0,)),
    ]
    laws = [luce(4, 3, 2), luce(1, 3, 2), luce(7, 1, 1), [None, *luce(3, 1)]]
    assert_laws(rater, queries, list(map(choice_law, laws)), seed=0)


def test_plackett_luce_rater():
    rater = choice.plackett_luce_rater(as_table([[0.5, 0.3, 0.15, 0.05]]))
    strengths = np.array([0.3, 0.05, 0.5])
    law = {}
    for order in itertools.permutations(range(3)):
        left = strengths[list(order)]
        ranks = np.argsort(order) + 1
        law[(ranks[0], -1, ranks[1], ranks[2])] = np.prod(left / np.cumsum(left[::-1])[::-1])
    assert_laws(rater, [query(1, 2, 3, 0, empty=(1,))], [law], seed=2)


# --- several segments -----------------------------------------------------------------------------

HALVES = np.array([[0.7, 0.2, 0.1], [1 / 0.7, 1 / 0.2, 1 / 0.1]])
HALVES /= HALVES.sum(1, keepdims=True)  # the second half likes what the first does not


def segments(query: Query) -> jax.Array:
    return jnp.asarray(np.log(HALVES), jnp.float32)[:, query.item_ids]


WEIGHTS_OF_SEGMENTS = np.array([[0.5, 0.5], [0.8, 0.2]])


def by_prompt(population: Callable[..., Rater]) -> Rater:
    """One population a prompt: the halves are equal at prompt 0, not at prompt 1."""
    log_weights = jnp.asarray(
        np.log(WEIGHTS_OF_SEGMENTS) + 3.0, jnp.float32
    )  # a shift changes nothing
    return lambda key, query: population(segments, log_weights[query.prompt_id])(key, query)


def test_opposed_segments_are_even_on_every_pair_and_their_mixture_is_not():
    pairs = list(itertools.combinations(range(3), 2))
    queries, of_segments, of_mixture = [], [], []
    for prompt, weights in enumerate(WEIGHTS_OF_SEGMENTS):
        for i, j in pairs:
            densities = HALVES[:, [i, j]]
            queries.append(query(i, 0, j, prompt_id=prompt, empty=(1,)))
            chosen = weights @ (densities / densities.sum(1, keepdims=True))
            of_segments.append([chosen[0], None, chosen[1]])
            mixture = luce(*(weights @ densities))
            of_mixture.append([mixture[0], None, mixture[1]])
    assert [law[0] for law in of_segments[:3]] == pytest.approx([0.5] * 3)
    assert abs(of_mixture[0][0] - 0.5) > 0.1  # far outside the tolerance
    rater = by_prompt(choice.segment_rater)
    assert_laws(rater, queries, list(map(choice_law, of_segments)), seed=3)
    rater = by_prompt(choice.mixture_rater)
    assert_laws(rater, queries, list(map(choice_law, of_mixture)), seed=4)


def test_dichotomy_rater():
    types = jnp.array([1, 2, 2, 2, 1])
    rater = choice.dichotomy_rater(lambda query: types[query.item_ids], 0.4)
    queries = [
        query(0, 1, 2, 3),
        query(0, 4, 1, 2),
        query(1, 2, 3, 3),
        query(4, 0, 0, 0),
        query(0, 1, 2, 4, empty=(1, 3)),
    ]
    laws = [
        [0.4, 0.2, 0.2, 0.2],
        [0.2, 0.2, 0.3, 0.3],
        [0.25] * 4,  # no message of type 1: those who want it choose any
        [0.25] * 4,
        [0.4, None, 0.6, None],
    ]
    assert_laws(rater, queries, list(map(choice_law, laws)), seed=7)


# --- recorded people ------------------------------------------------------------------------------

ANSWERS = jnp.array([[2, 2, 2, 2, 2, 2, 2, 2], [0, 1, 0, 2, -1, 3, 1, 4]])
WEIGHTS = jnp.array([1.0, 0.5, 2.0, 1.5, 9.0, 0.0, 1.0, 5.0])
SHARES = np.array([3.0, 1.5, 1.5])  # of items 0, 1, 2 at prompt 1; item 3 has the weight 0


def test_recorded_choices_are_luce_in_the_weighted_shares():
    rater = choice.recorded_choice_rater(ANSWERS, WEIGHTS, num_items=5)
    queries = [
        query(1, 0, 2, prompt_id=1),
        query(1, 0, 2, prompt_id=1, empty=(0,)),
        query(1, 0, 3, prompt_id=1, empty=(1,)),
        query(2, 1, 0, prompt_id=0),
        query(5, 3, 6, prompt_id=1),
        query(5, 3, 6, prompt_id=1, empty=(0,)),
        query(0, 0, 0, prompt_id=1, empty=(0, 1, 2)),
        query(-1, 0, 1, prompt_id=1),
    ]
    laws = [
        choice_law(luce(*SHARES[[1, 0, 2]])),
        choice_law([None, *luce(SHARES[0], SHARES[2])]),
        choice_law([1.0, None, 0.0]),
        choice_law([1.0, 0.0, 0.0]),
        {(1, 1, 1): 1.0},  # nobody of positive weight gave any of these answers
        {(-1, 1, 1): 1.0},
        {(-1, -1, -1): 1.0},
        choice_law([0.0, *luce(SHARES[0], SHARES[1])]),  # -1, no answer, is nobody's choice
    ]
    assert_laws(rater, queries, laws, seed=9)


def test_recorded_rankings_keep_ties_and_ask_only_who_knows_all():
    unknown = -1
    ranks = jnp.array([[[1, 2, 3, 4], [2, 1, 1, unknown], [5, 5, 5, 5], [1, unknown, 1, 2]]])
    ranks = jnp.pad(ranks, ((0, 0), (0, 0), (0, 1)), constant_values=unknown)  # nobody knows item 4
    rater = choice.recorded_ranking_rater(ranks, jnp.array([1.0, 2.0, 1.0, 4.0]))
    queries = [
        query(0, 1, 2),
        query(1, 0, 3),
        query(3, 2, 2, empty=(1,)),
        query(3, 0, 2),
        query(4, 0, 1),
        query(4, 0, 1, empty=(1,)),
    ]
    laws = [
        {(1, 2, 3): 0.25, (2, 1, 1): 0.5, (5, 5, 5): 0.25},
        {(2, 1, 4): 0.5, (5, 5, 5): 0.5},
        {(4, -1, 3): 1 / 6, (5, -1, 5): 1 / 6, (2, -1, 1): 4 / 6},
        {(4, 1, 3): 1 / 6, (5, 5, 5): 1 / 6, (2, 1, 1): 4 / 6},
        {(1, 1, 1): 1.0},  # nobody knows them all
        {(1, -1, 1): 1.0},
    ]
    assert_laws(rater, queries, laws, seed=10)


def test_recorded_votes():
    votes = jnp.array([[6.0, 2, 2], [2, 6, 2], [0, 3, 0], [0, 0, 0], [6, 2, 0]])
    queries = [query(4, 7, prompt_id=p) for p in range(5)]
    queries.append(query(4, 7, empty=(1,)))
    laws = [
        {(1, 2): 0.6, (2, 1): 0.2, (1, 1): 0.2},
        {(1, 2): 0.2, (2, 1): 0.6, (1, 1): 0.2},
        {(2, 1): 1.0},
        {(1, 1): 1.0},  # nobody voted
        {(1, 2): 0.75, (2, 1): 0.25},
        {(1, -1): 1.0},
    ]
    assert_laws(choice.recorded_vote_rater(votes), queries, laws, seed=11)


def test_one_draw_answers_many_queries_about_votes():
    votes = jnp.array([[6.0, 2, 2], [0, 0, 5], [1, 0, 0]])
    numbers = np.tile([0, 1, 2, 0], 4000)
    items = np.tile([4, 7], (len(numbers), 1))
    items[3::4, 1] = -1  # an empty slot
    ranks = jax.jit(choice.recorded_vote_rater(votes))(
        jax.random.key(0), item_query(items, prompt_id=numbers)
    )
    np.testing.assert_array_equal(ranks[1::4], [[1, 1]] * 4000)
    np.testing.assert_array_equal(ranks[2::4], [[1, 2]] * 4000)
    np.testing.assert_array_equal(ranks[3::4], [[1, -1]] * 4000)
    for answer, chance in (((1, 2), 0.6), ((2, 1), 0.2), ((1, 1), 0.2)):
        share = np.mean(np.all(np.asarray(ranks[::4]) == answer, axis=1))
        assert abs(share - chance) < 4.5 * (chance * (1 - chance) / 4000) ** 0.5


# --- bad input ------------------------------------------------------------------------------------


def test_wrong_shapes_and_types_raise_at_once():
    with pytest.raises(AssertionError):
        choice.table_utility(jnp.zeros(3))
    with pytest.raises(AssertionError):
        choice.recorded_choice_rater(ANSWERS, jnp.ones(3), num_items=5)
    with pytest.raises(AssertionError):
        choice.recorded_choice_rater(ANSWERS.astype(float), WEIGHTS, num_items=5)
    with pytest.raises(AssertionError):
        choice.recorded_ranking_rater(jnp.ones((1, 2, 3), int), jnp.ones(3))
    with pytest.raises(AssertionError):
        choice.recorded_ranking_rater(jnp.ones((1, 2, 3), int), jnp.ones(2, int))
    with pytest.raises(AssertionError):
        choice.recorded_vote_rater(jnp.ones((1, 3, 3)))
    with pytest.raises(AssertionError):
        choice.recorded_vote_rater(jnp.ones((3, 3), int))
    with pytest.raises(AssertionError):  # not a pair
        jax.eval_shape(
            choice.recorded_vote_rater(jnp.ones((3, 3))), jax.random.key(0), query(0, 1, 2)
        )


POOL_OF_THREE: dict[str, Rater] = {
    "luce": choice.luce_rater(choice.table_utility(jnp.zeros((1, 3)))),
    "ranking": choice.recorded_ranking_rater(jnp.ones((1, 2, 3), int), jnp.ones(2)),
}


@pytest.mark.parametrize("name", POOL_OF_THREE)
def test_item_outside_the_pool_raises_under_checkify_only(name):
    keys = iter(jax.random.split(jax.random.key(0), 4))
    checked = jax.jit(checkify.checkify(POOL_OF_THREE[name]))
    checked(next(keys), query(0, 2))[0].throw()
    checked(next(keys), query(0, 2, empty=(0,)))[0].throw()  # an empty slot may hold any id
    with pytest.raises(checkify.JaxRuntimeError, match=r"outside its pool.*< 3.*between 1 and 3"):
        checked(next(keys), query(1, 3))[0].throw()
    jax.jit(POOL_OF_THREE[name])(next(keys), query(1, 3))


def test_pair_without_votes_raises_under_checkify_only():
    rater = choice.recorded_vote_rater(jnp.ones((3, 3)))
    checked = jax.jit(checkify.checkify(rater))
    checked(jax.random.key(0), query(0, 2, prompt_id=2))[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"prompt_id < 3.*between 3 and 3"):
        checked(jax.random.key(1), query(0, 2, prompt_id=3))[0].throw()
    jax.jit(rater)(jax.random.key(1), query(0, 2, prompt_id=3))


def test_choice_of_an_empty_slot_raises_under_checkify_only():
    valid = jnp.array([True, False])
    checked = jax.jit(checkify.checkify(choice.choice_ranks))
    checked(jnp.array(0), valid)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="slot 1 was chosen but is empty"):
        checked(jnp.array(1), valid)[0].throw()
    np.testing.assert_array_equal(choice.choice_ranks(jnp.array(1), valid), [2, -1])


def test_that_nobody_answers_is_no_error():
    rater = choice.recorded_choice_rater(ANSWERS, WEIGHTS, num_items=5)
    checked = jax.jit(checkify.checkify(rater))
    error, ranks = checked(jax.random.key(0), query(5, 3, 6, prompt_id=1, empty=(0,)))
    error.throw()
    np.testing.assert_array_equal(ranks, [-1, 1, 1])
