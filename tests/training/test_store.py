from functools import partial

import jax
import numpy as np
import pytest

from shatter.training import add_comparisons, empty_store, sample_comparisons
from shatter.training.store import all_comparisons
from shatter.types import Comparison, Query

CAPACITY, MEMBERS = 7, 2


def comparisons(numbers):
    """Comparisons that carry their numbers in every leaf."""
    numbers = np.asarray(numbers, np.int32)
    pair = np.stack([numbers, numbers + 100], axis=-1)
    tokens = np.stack([pair] * 3, axis=-1)
    query = Query(numbers, tokens, tokens % 2 == 0, pair, pair % 3 > 0)
    return Comparison(query, pair % 5, np.float32(1.0 + numbers))


def blank():
    return jax.tree.map(lambda leaf: leaf[0], comparisons([0]))


def own_weights(numbers):
    return np.stack(
        [np.float32(10 * m) + np.asarray(numbers, np.float32) for m in range(1, MEMBERS + 1)]
    )


def filled(*batches):
    """The store after some batches of comparisons."""
    store = empty_store(blank(), num_members=MEMBERS, capacity=CAPACITY)
    for batch in batches:
        store = jax.jit(add_comparisons)(store, comparisons(batch), own_weights(batch))
    return store


def assert_holds(store, numbers):
    """Whether row i holds comparison numbers[i] in every leaf."""
    expected = comparisons(numbers)
    jax.tree.map(np.testing.assert_array_equal, store.comparisons, expected)
    np.testing.assert_array_equal(store.member_weights, own_weights(numbers))


def test_a_store_starts_empty():
    store = empty_store(jax.eval_shape(blank), num_members=MEMBERS, capacity=CAPACITY)
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    expected = [((CAPACITY, *shape), dtype) for shape, dtype in shapes(jax.eval_shape(blank))]
    assert shapes(store.comparisons) == expected
    assert store.size == 0
    np.testing.assert_array_equal(store.comparisons.weight, np.zeros(CAPACITY))
    np.testing.assert_array_equal(store.member_weights, np.zeros((MEMBERS, CAPACITY)))


def test_one_row_of_member_weights_serves_all_members():
    store = empty_store(blank(), num_members=MEMBERS, capacity=CAPACITY)
    shared = np.array([[0.5, 2.0]])
    store = jax.jit(add_comparisons)(store, comparisons([1, 2]), shared)
    np.testing.assert_array_equal(store.member_weights[:, :2], np.repeat(shared, MEMBERS, axis=0))


def test_the_oldest_make_room():
    batches = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    assert_holds(filled(*batches), [15, 9, 10, 11, 12, 13, 14])
    assert filled(*batches).size == 15
    part = filled(*batches[:2])
    np.testing.assert_array_equal(part.comparisons.query.prompt_id, [1, 2, 3, 4, 5, 6, 0])
    np.testing.assert_array_equal(part.comparisons.weight[6:], [0.0])
    np.testing.assert_array_equal(part.member_weights[:, 6:], np.zeros((MEMBERS, 1)))


def test_a_batch_as_large_as_the_store_replaces_it():
    assert_holds(filled([1, 2], range(3, 10)), [8, 9, 3, 4, 5, 6, 7])


def test_all_comparisons_hold_no_blank_row():
    rows, weights = jax.jit(all_comparisons)(filled([4, 5, 6]))
    numbers = np.array([4, 5, 6, 6, 6, 6, 6])
    jax.tree.map(np.testing.assert_array_equal, rows, comparisons(numbers))
    np.testing.assert_array_equal(weights, own_weights(numbers) * (np.arange(7) < 3))
    full = filled([1, 2, 3, 4], [5, 6, 7, 8])
    rows, weights = jax.jit(all_comparisons)(full)
    jax.tree.map(np.testing.assert_array_equal, rows, full.comparisons)
    np.testing.assert_array_equal(weights, full.member_weights)


@pytest.mark.parametrize(
    ("batches", "numbers"),
    [([[1, 2, 3]], [1, 2, 3]), ([[1, 2, 3, 4], [5, 6, 7, 8]], [8, 2, 3, 4, 5, 6, 7])],
)
def test_samples_are_uniform_over_the_rows_in_use(batches, numbers):
    store = filled(*batches)
    num_keys, batch_size = 4_000, 5
    draw = jax.jit(jax.vmap(partial(sample_comparisons, batch_size=batch_size), in_axes=(None, 0)))
    rows, weights = draw(store, jax.random.split(jax.random.key(0), num_keys))
    drawn = np.asarray(rows.query.prompt_id)
    assert drawn.shape == (num_keys, batch_size)
    # A row comes whole, with the members' weights on it.
    jax.tree.map(np.testing.assert_array_equal, rows, comparisons(drawn))
    np.testing.assert_array_equal(weights, np.stack([drawn + 10, drawn + 20], axis=1))
    counts = np.bincount(drawn.ravel(), minlength=9)[numbers] / drawn.size
    chance = 1 / len(numbers)
    assert counts.sum() == pytest.approx(1)
    assert np.all(np.abs(counts - chance) < 4.5 * np.sqrt(chance * (1 - chance) / drawn.size))
    again = np.mean(drawn[:, 0] == drawn[:, 1])  # with replacement, independently
    assert abs(again - chance) < 4.5 * np.sqrt(chance * (1 - chance) / num_keys)


def test_a_store_has_room():
    with pytest.raises(ValueError, match="capacity >= 1, found 0"):
        empty_store(blank(), num_members=1, capacity=0)
    store = filled()
    with pytest.raises(ValueError, match="a store of 7 rows cannot take 8 comparisons at once"):
        add_comparisons(store, comparisons(range(8)), own_weights(range(8)))
    with pytest.raises(AssertionError):
        add_comparisons(store, comparisons(range(3)), own_weights(range(2)))
