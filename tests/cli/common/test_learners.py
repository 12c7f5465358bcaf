"""Learners on a table of features, driven by the library's interaction."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import exploration, training
from shatter.cli.common.frozen import hidden_rows
from shatter.cli.common.learners import (
    Setting,
    adapter_utility,
    layers_of,
    make_learner,
    response_places,
    table_comparisons,
)
from shatter.types import item_query
from tests.models.tiny import LLAMA, random_params

TEXTS, WIDTH, MEMBERS, BATCH, ROUNDS = 7, 5, 3, 2, 3
PAIRS = np.array([[0, 1], [2, 3], [4, 5], [0, 6], [1, 3], [2, 6], [4, 1], [5, 3]])
TABLE = {"features": jnp.asarray(np.random.default_rng(0).normal(size=(TEXTS, WIDTH)))}
SETTING = Setting("heads", MEMBERS, 1.0, learning_rate=0.05, num_steps=3, batch_size=4)
RANKS = jnp.array([[1, 2], [2, 1]])


def learner():
    return make_learner(SETTING, None, (), num_features=WIDTH, prior_scale=SETTING.prior_scale)


def fresh_pairs(key, shared, own, store):
    """All pairs in random order; those that were asked have no valid response."""
    del shared, own
    order = jax.random.permutation(key, len(PAIRS))
    free = ~training.asked(store, len(PAIRS))[order]
    valid = jnp.broadcast_to(free[:, None], (len(PAIRS), 2))
    return item_query(jnp.asarray(PAIRS)[order], prompt_id=order, valid=valid)


def by_the_interaction(key):
    made = learner()
    propose = training.query_proposer(
        fresh_pairs,
        lambda shared, own, queries: made.utilities(shared, own, queries.item_ids),
        exploration.infomax_queries,
        num_queries=BATCH,
    )
    process = made.interaction(
        TABLE, propose, query=item_query(jnp.zeros(2, int)), capacity=len(PAIRS)
    )

    def one_round(state, key):
        propose_key, *learn_keys = jax.random.split(key, 3)
        queries = process.propose(state, propose_key)
        comparisons = table_comparisons(queries.item_ids, RANKS, jnp.ones(BATCH))
        comparisons = comparisons._replace(query=queries)
        return process.learn(state, comparisons, tuple(learn_keys))[0], queries.prompt_id

    state, asked = jax.lax.scan(one_round, process.init(key), jax.random.split(key, ROUNDS))
    return state.members.params, asked


def by_hand(key):
    made = learner()
    ensemble_key, member_key = jax.random.split(key)
    shared, own = made.ensemble.init(ensemble_key)
    members = made.members.init((shared, TABLE), own, member_key)
    blank = jax.tree.map(lambda leaf: leaf[0], table_comparisons(PAIRS[:1], RANKS[:1], jnp.ones(1)))
    store = training.empty_store(blank, num_members=MEMBERS, capacity=len(PAIRS))
    was_asked, numbers = jnp.zeros(len(PAIRS), bool), []
    for round_key in jax.random.split(key, ROUNDS):
        propose_key, weight_key, learn_key = jax.random.split(round_key, 3)
        order_key, explore_key = jax.random.split(propose_key)
        order = jax.random.permutation(order_key, len(PAIRS))
        items = jnp.asarray(PAIRS)[order]
        chosen = exploration.infomax_queries(
            explore_key,
            made.utilities(members.shared, members.states.params, items),
            valid=jnp.broadcast_to(~was_asked[order][:, None], items.shape),
            num_queries=BATCH,
        )
        comparisons = table_comparisons(items[chosen], RANKS, jnp.ones(BATCH))
        weights = made.ensemble.observation_weights(weight_key, (BATCH,))
        store = training.add_comparisons(store, comparisons, weights)
        members, _ = made.members.learn(members, store, learn_key)
        was_asked = was_asked.at[order[chosen]].set(True)
        numbers.append(order[chosen])
    return members.states.params, jnp.stack(numbers)


@pytest.mark.slow
def test_the_interaction_of_a_learner_is_the_loop_by_hand(float64):
    params, asked = jax.jit(by_the_interaction)(jax.random.key(0))
    expected_params, expected = jax.jit(by_hand)(jax.random.key(0))
    np.testing.assert_array_equal(asked, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), params, expected_params)
    assert len(np.unique(asked)) == BATCH * ROUNDS


def test_observation_weights_may_be_given(float64):
    given = jnp.arange(1.0, 1 + MEMBERS * BATCH).reshape(MEMBERS, BATCH)

    @jax.jit
    def learned(key):
        process = learner().interaction(
            TABLE,
            lambda *_: item_query(PAIRS[:BATCH]),
            query=item_query(jnp.zeros(2, int)),
            capacity=4,
            observation_weights=lambda key, shape: given,
        )
        state = process.init(key)
        rows = table_comparisons(PAIRS[:BATCH], RANKS, jnp.ones(BATCH))
        return process.learn(state, rows)[0].store

    np.testing.assert_array_equal(learned(jax.random.key(1)).member_weights[:, :BATCH], given)


@pytest.mark.slow
@pytest.mark.parametrize("utility", ["ratio", "sum", "tilt"])
@pytest.mark.parametrize("adapted_layers", [1, "last_mlp_out"])
def test_the_logits_at_the_places_of_responses_give_the_utilities(float64, adapted_layers, utility):
    """They also give the slopes in a member's adapters. The last text has no place.

    Tilt and ratio are what they are called, of the log-probs of the text and of the base.
    """
    setting = Setting(
        "adapters",
        MEMBERS,
        1.0,
        0.1,
        1,
        utility=utility,
        lora_r=2,
        lora_target_modules=("mlp_out",),
        adapted_layers=adapted_layers,
    )
    params, cut = random_params(LLAMA), layers_of(setting, LLAMA)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 6)))
    valid = np.arange(6) < np.array([6, 4, 5, 3])[:, None]
    mask = valid & (np.arange(6) >= np.array([1, 2, 1, 1])[:, None])
    layer = setting.cut(LLAMA.num_layers)
    table = jax.jit(hidden_rows, static_argnums=(0, 1))(LLAMA, layer, params, tokens, mask, valid)
    places = response_places(mask & (np.arange(4) < 3)[:, None])
    base = cut.upper_params(params)
    made = make_learner(setting, LLAMA, base, num_features=0, prior_scale=1.0)
    own = jax.tree.map(lambda leaf: leaf[1], made.ensemble.init(jax.random.key(0))[1])

    def total(own, table):
        values = adapter_utility(cut.upper, setting, base, own, table)[:3]
        return values @ jnp.array([1.0, -2.0, 0.5]), values

    slopes = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, expected), of_rows = slopes(own, table)
    lengths = mask.sum(axis=1)
    summed = dataclasses.replace(setting, utility="sum")
    log_probs = jax.jit(partial(adapter_utility, cut.upper, summed))(base, own, table)
    gain = log_probs - lengths * table["log_prob"]
    forms = {"sum": log_probs, "tilt": gain, "ratio": 10.0 * gain / lengths}
    np.testing.assert_allclose(expected, forms[utility][:3], atol=1e-12)
    (_, found), of_places = slopes(own, table | {"places": jnp.asarray(places)})
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), of_places, of_rows)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_rows)) > 1e-3
