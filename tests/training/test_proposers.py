"""Proposers of pairs and of whole queries, with arms that can be followed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shatter.exploration import infomax_queries
from shatter.losses import ilhf_ranking_loss
from shatter.training import (
    add_comparisons,
    asked,
    batch_proposer,
    empty_store,
    interaction,
    pair_proposer,
    query_proposer,
)
from shatter.types import Comparison, Ensemble, item_query

MEMBERS, ITEMS, POOL, BATCH = 3, 6, 8, 2
PAIRS = np.array([[0, 1], [2, 3], [4, 5], [0, 2], [1, 3], [0, 4], [1, 5], [2, 4]])
OWN = np.random.default_rng(0).normal(size=(MEMBERS, ITEMS))
SHARED = 2.0


def score(shared, own, query):
    """A score for every item; works for candidates and for queries."""
    return shared * own[query.item_ids]


def store_of(numbers, capacity=5):
    """Comparisons about some pairs of the pool, by their numbers."""
    query = item_query(PAIRS[numbers], prompt_id=jnp.asarray(numbers))
    rows = Comparison(query, jnp.tile(jnp.array([1, 2]), (len(numbers), 1)), jnp.ones(len(numbers)))
    blank = jax.tree.map(lambda leaf: leaf[0], rows)
    store = empty_store(blank, num_members=MEMBERS, capacity=capacity)
    for start in range(0, len(numbers), capacity):
        part = jax.tree.map(lambda leaf, at=start: leaf[at : at + capacity], rows)
        store = add_comparisons(store, part, jnp.ones((MEMBERS, len(part.weight))))
    return store


def pool_queries(key, shared, own, store):
    """Every pair of the pool that was not asked."""
    del key, shared, own
    free = ~asked(store, POOL)
    valid = jnp.broadcast_to(free[:, None], PAIRS.shape)
    return item_query(PAIRS, prompt_id=jnp.arange(POOL), valid=valid)


def members_utilities(shared, own, queries):
    return jax.vmap(score, in_axes=(None, 0, None))(shared, own, queries)


@pytest.mark.slow
def test_asked_marks_what_the_store_holds():
    np.testing.assert_array_equal(asked(store_of([2, 6]), POOL), np.isin(np.arange(POOL), [2, 6]))
    blank = jax.tree.map(lambda leaf: leaf[0], store_of([2]).comparisons)
    empty = empty_store(blank, num_members=MEMBERS, capacity=5)
    assert not asked(empty, POOL).any()  # its blank rows are not about query 0
    full = store_of([7, 6, 5, 4, 3, 2, 1, 0])  # the oldest have made room
    np.testing.assert_array_equal(asked(full, POOL), np.isin(np.arange(POOL), [0, 1, 2, 3, 4]))


@pytest.mark.slow
@pytest.mark.parametrize("before", [[1], [3, 0, 5, 7]])
def test_whole_queries_are_those_that_the_arm_likes_and_were_not_asked(before, float64):
    propose = jax.jit(
        query_proposer(pool_queries, members_utilities, infomax_queries, num_queries=BATCH)
    )
    queries = propose(jax.random.key(0), SHARED, jnp.asarray(OWN), store_of(before))
    odds = SHARED * (OWN[:, PAIRS[:, 0]] - OWN[:, PAIRS[:, 1]])
    p = 1 / (1 + np.exp(-odds))
    entropy = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
    gain = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    gain[before] = -1
    best = np.argsort(-gain)[:BATCH]
    np.testing.assert_array_equal(queries.prompt_id, best)
    np.testing.assert_array_equal(queries.item_ids, PAIRS[best])
    assert queries.valid.all()


def test_pairs_come_from_candidates_of_their_own():
    def candidates(key, shared, own):
        del shared, own
        start = jax.random.randint(key, (), 0, ITEMS)
        return item_query((start + jnp.arange(3)) % ITEMS, prompt_id=start)

    def first_twice(key, log_probs, *, valid, num_responses):
        del key, valid
        assert (log_probs.shape, num_responses) == ((MEMBERS, 3), 2)
        return jnp.array([1, 1])

    propose = pair_proposer(candidates, score, first_twice, num_queries=40)
    queries = jax.jit(propose)(jax.random.key(0), SHARED, jnp.asarray(OWN), None)
    assert set(np.asarray(queries.prompt_id)) == set(range(ITEMS))
    chosen = (np.asarray(queries.prompt_id) + 1) % ITEMS
    np.testing.assert_array_equal(queries.item_ids, np.stack([chosen, chosen], axis=1))
    np.testing.assert_array_equal(
        queries.valid, [[True, False]] * 40
    )  # a response is not compared with itself


def test_a_batch_is_chosen_together_from_candidates_of_every_query():
    def candidates(key, shared, own):
        del shared, own
        start = jax.random.randint(key, (), 0, ITEMS)
        return item_query((start + jnp.arange(3)) % ITEMS, prompt_id=start)

    def by_turns(key, shared, own, store, pools):
        """The query's number in the batch decides, which no query alone can know."""
        del key, store
        assert (shared, own.shape, pools.item_ids.shape) == (SHARED, (MEMBERS, ITEMS), (4, 3))
        first = jnp.arange(4) % 3
        return jnp.stack([first, (first + 1) % 3], axis=1)

    propose = batch_proposer(candidates, by_turns, num_queries=4)
    queries = propose(jax.random.key(0), SHARED, jnp.asarray(OWN), None)
    first = (np.asarray(queries.prompt_id) + np.arange(4) % 3) % ITEMS
    second = (np.asarray(queries.prompt_id) + (np.arange(4) % 3 + 1) % 3) % ITEMS
    np.testing.assert_array_equal(queries.item_ids, np.stack([first, second], axis=1))
    assert queries.valid.all()


def process(propose, **changes):
    ensemble = Ensemble(
        init=lambda key: (SHARED, jax.random.normal(key, (MEMBERS, ITEMS))),
        apply=lambda shared, own, tokens, *, valid=None: own[tokens],
        observation_weights=lambda key, shape: jax.random.exponential(key, (MEMBERS, *shape)),
    )
    return interaction(
        ensemble,
        propose=propose,
        score=score,
        loss=ilhf_ranking_loss,
        optimizer=optax.sgd(0.1),
        capacity=POOL,
        **changes,
    )


@pytest.mark.slow
def test_an_interaction_asks_every_query_of_its_pool_once():
    propose = query_proposer(pool_queries, members_utilities, infomax_queries, num_queries=BATCH)
    halves = process(propose, query=item_query(jnp.zeros(2, int)))

    @jax.jit
    def run(key):
        def one_round(state, key):
            queries = halves.propose(state, key)
            first_wins = jnp.broadcast_to(jnp.array([1, 2]), queries.valid.shape)
            return halves.learn(state, Comparison(queries, first_wins, jnp.ones(BATCH)))[0], queries

        keys = jax.random.split(jax.random.fold_in(key, 1), POOL // BATCH)
        return jax.lax.scan(one_round, halves.init(key), keys)

    state, queries = run(jax.random.key(3))
    assert sorted(np.ravel(queries.prompt_id)) == list(range(POOL))
    assert queries.valid.all()
    np.testing.assert_array_equal(
        state.store.comparisons.query.item_ids, queries.item_ids.reshape(-1, 2)
    )


def test_the_store_needs_a_query_where_the_proposer_reads_it():
    propose = query_proposer(pool_queries, members_utilities, infomax_queries, num_queries=BATCH)
    with pytest.raises(ValueError, match=r"reads `store\.comparisons`.*pass `query`"):
        jax.eval_shape(process(propose).init, jax.random.key(0))


@pytest.mark.slow
def test_keys_of_learn_are_the_states_own_unless_given():
    everything = lambda *_: item_query(PAIRS[:BATCH])
    halves = process(everything, batch_size=2)
    learn = jax.jit(halves.learn)
    rows = Comparison(item_query(PAIRS[:4]), jnp.tile(jnp.array([1, 2]), (4, 1)), jnp.ones(4))
    start = lambda: halves.init(jax.random.key(0))  # a key is used once
    own_keys = lambda: tuple(jax.random.split(jax.random.fold_in(start().key, 0)))
    expected, _ = learn(start(), rows)
    same, _ = learn(start(), rows, own_keys())
    jax.tree.map(
        np.testing.assert_array_equal,
        (same.members.params, same.store),
        (expected.members.params, expected.store),
    )
    other, _ = learn(start(), rows, (own_keys()[0], jax.random.key(9)))
    np.testing.assert_array_equal(other.store.member_weights, expected.store.member_weights)
    assert np.all(np.any(other.members.params != expected.members.params, axis=1))
    weights = jax.random.exponential(own_keys()[0], (MEMBERS, 4))
    np.testing.assert_allclose(other.store.member_weights[:, :4], weights, rtol=1e-6)


@pytest.mark.slow
def test_members_at_once_do_not_change_what_is_learned(float64):
    everything = lambda *_: item_query(PAIRS[:BATCH])
    rows = Comparison(item_query(PAIRS), jnp.tile(jnp.array([2, 1]), (POOL, 1)), jnp.ones(POOL))

    def learned(members_at_once):
        halves = process(everything, members_at_once=members_at_once)
        return jax.jit(lambda: halves.learn(halves.init(jax.random.key(0)), rows)[0])()

    assert np.all(learned(None).members.step > 0)
    np.testing.assert_allclose(learned(1).members.params, learned(None).members.params, rtol=1e-12)
