from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shatter.losses import ilhf_ranking_loss
from shatter.training import add_comparisons, empty_store, members_learner
from shatter.types import MEMBER_AXIS, Comparison, item_query

MEMBERS, ITEMS = 3, 4


class Scores:
    """An ensemble whose members are a score an item, by the protocol."""

    def __init__(self, combine_gradients, start=lambda anchor: anchor):
        self.combine_gradients = combine_gradients
        self.start = start

    def init(self, key):
        return (), jax.random.normal(key, (MEMBERS, ITEMS))

    def penalty(self, own, anchor):
        return 0.5 * jnp.sum(jnp.square(own - anchor))


def score(shared, own, query):
    return own[query.item_ids]


def store():
    items = jnp.array([[0, 1], [2, 3], [1, 3]])
    ranks = jnp.array([[1, 2], [2, 1], [1, 2]])
    rows = Comparison(item_query(items), ranks, jnp.ones(3))
    blank = jax.tree.map(lambda leaf: leaf[0], rows)
    weights = jax.random.exponential(jax.random.key(1), (MEMBERS, 3))
    return add_comparisons(empty_store(blank, num_members=MEMBERS, capacity=4), rows, weights)


def learned(*, combine=lambda gradient: gradient, start=lambda anchor: anchor, **arguments):
    ensemble = Scores(combine, start)
    learner = members_learner(
        ensemble, score=score, loss=ilhf_ranking_loss, optimizer=optax.sgd(0.3), **arguments
    )
    shared, own = ensemble.init(jax.random.key(0))
    members = learner.init(shared, own, jax.random.key(2))
    members, metrics = jax.jit(learner.learn)(members, store(), jax.random.key(3))
    assert np.isfinite(metrics["loss"])
    return own, members.states.params


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_members_in_turn_are_members_at_once(at_once, batch_size, float64):
    learn = partial(learned, num_steps=3, batch_size=batch_size)
    _, expected = learn()
    _, found = learn(members_at_once=at_once)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_a_step_is_that_of_the_documented_objective(float64):
    start, found = learned(num_steps=1)
    rows = store()
    for m in range(MEMBERS):

        def objective(own, m=m):
            utilities = own[rows.comparisons.query.item_ids[:3]]
            each = ilhf_ranking_loss(utilities, rows.comparisons.ranks[:3])
            return jnp.sum(rows.member_weights[m, :3] * each) / 3

        expected = start[m] - 0.3 * jax.grad(objective)(start[m])
        np.testing.assert_allclose(found[m], expected, rtol=1e-12)


@pytest.mark.slow
def test_gradients_are_combined_over_the_members(float64):
    start, alone = learned(num_steps=1)
    _, tied = learned(num_steps=1, combine=lambda gradient: jax.lax.pmean(gradient, MEMBER_AXIS))
    mean = np.mean(np.asarray(alone - start), axis=0)
    np.testing.assert_allclose(tied - start, np.broadcast_to(mean, tied.shape), rtol=1e-12)


@pytest.mark.slow
def test_members_start_where_the_ensemble_says_and_are_pulled_to_their_anchors(float64):
    """The objective is convex, so that the start does not matter in the end."""
    halfway = lambda anchor: 0.5 * anchor + 1.0
    learner = members_learner(
        Scores(None, halfway), score=score, loss=ilhf_ranking_loss, optimizer=optax.sgd(0.3)
    )
    anchors = jax.random.normal(jax.random.key(0), (MEMBERS, ITEMS))
    begun = learner.init((), anchors, jax.random.key(2))
    np.testing.assert_array_equal(begun.anchors, anchors)
    np.testing.assert_array_equal(begun.states.params, halfway(anchors))
    _, at_draws = learned(num_steps=400)
    _, elsewhere = learned(num_steps=400, start=halfway)
    np.testing.assert_allclose(elsewhere, at_draws, atol=1e-9)
