"""A store of comparisons, of fixed size."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.types import Array, Comparison, Key


class Store(NamedTuple):
    """The comparisons so far.

    Attributes:
      comparisons: a `Comparison` with a leading axis of `capacity` rows on every leaf; `weight` is
        0 on rows that are empty.
      member_weights: `[M, capacity]`, each member's own weight on every row.
      size: int `[]`, how many comparisons were ever added; above the capacity the oldest were
        replaced.
    """

    comparisons: Comparison
    member_weights: Array
    size: Array


def empty_store(comparison: Comparison, *, num_members: int, capacity: int) -> Store:
    """Returns a store without comparisons.

    Args:
      comparison: one comparison (or its `jax.eval_shape`), for shapes and types.
      num_members: M.
      capacity: how many comparisons it holds.

    Returns:
      The store.

    Raises:
      ValueError: if the capacity is not positive.
    """
    if capacity < 1:
        raise ValueError(f"a store needs capacity >= 1, found {capacity}")
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), comparison)
    return Store(rows, jnp.zeros((num_members, capacity)), jnp.zeros((), int))


def add_comparisons(store: Store, comparisons: Comparison, member_weights: Array) -> Store:
    """Adds comparisons; in a full store they replace the oldest.

    Args:
      store: the store.
      comparisons: leaves `[B, ...]`, B at most the capacity.
      member_weights: `[M, B]`, each member's own weight on every new comparison; `[1, B]` = the
        same for all.

    Returns:
      The store with the new comparisons.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if there are more comparisons than the store holds.
    """
    capacity, num_new = store.member_weights.shape[1], member_weights.shape[1]
    if num_new > capacity:
        raise ValueError(f"a store of {capacity} rows cannot take {num_new} comparisons at once")
    chex.assert_tree_shape_prefix(comparisons, (num_new,))
    rows = (store.size + jnp.arange(num_new)) % capacity
    return Store(
        jax.tree.map(
            lambda old, new: old.at[rows].set(new.astype(old.dtype)), store.comparisons, comparisons
        ),
        store.member_weights.at[:, rows].set(member_weights),
        store.size + num_new,
    )


def all_comparisons(store: Store) -> tuple[Comparison, Array]:
    """Returns every row, for a pass over the whole data set.

    Args:
      store: the store, with at least one comparison.

    Returns:
      comparisons with leaves `[capacity, ...]` and their member weights `[M, capacity]`. An empty
      row repeats the last comparison, with member weights 0, because a blank one (an empty
      response) would fail the checks of scores and losses.
    """
    rows = jnp.minimum(jnp.arange(store.member_weights.shape[1]), store.size - 1)
    return jax.tree.map(lambda leaf: leaf[rows], store.comparisons), store.member_weights


def sample_comparisons(store: Store, key: Key, batch_size: int) -> tuple[Comparison, Array]:
    """Draws rows uniformly, with replacement, from those in use.

    Args:
      store: the store, with at least one comparison.
      key: a typed key.
      batch_size: number of rows.

    Returns:
      comparisons with leaves `[batch_size, ...]` and their member weights `[M, batch_size]`.
    """
    in_use = jnp.clip(store.size, 1, store.member_weights.shape[1])
    rows = jax.random.randint(key, (batch_size,), 0, in_use)
    comparisons = jax.tree.map(lambda leaf: leaf[rows], store.comparisons)
    return comparisons, store.member_weights[:, rows]
