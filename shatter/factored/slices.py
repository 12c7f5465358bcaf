"""Folds over slices of the vocabulary, and the gradients of what such a fold returns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter.factored.container import VOCABULARY_AXES, Columns, FactoredLogits, Rows, multiply
from shatter.factored.sizes import slice_size
from shatter.numerics import finite_logs
from shatter.types import Array


class Slice(NamedTuple):
    """A slice of the vocabulary.

    Where the size of slices does not divide the vocabulary, the last one begins earlier and shares
    columns with the one before, which are counted there.

    Attributes:
      begin: `[]`, the token of its first column.
      numbers: int `[..., size]`, the tokens of its columns, with axes of size 1 in front.
      first: `[]`, the first token that is counted here; None = all are.
    """

    begin: Array
    numbers: Array
    first: Array | None

    def counted(self, values: Array, otherwise: float) -> Array:
        """Replaces values `[..., size]` of columns that another slice counts."""
        if self.first is None:
            return values
        return jnp.where(self.numbers >= self.first, values, otherwise)


def over_slices(
    factors: tuple[FactoredLogits, ...],
    function: Callable[[Slice, tuple[Columns, ...], Any], Any],
    start: Any,
) -> Any:
    """Folds a function over the vocabulary, of which one slice after the other is multiplied out.

    Args:
      factors: one or several models' logits, of one shape.
      function: `(slice, its columns of each of the factors, state) -> state`.
      start: the first state.

    Returns:
      The last state.
    """
    *rows, vocab_size = factors[0].shape
    size = min(vocab_size, max(1, slice_size() // max(1, math.prod(rows))))

    def body(number: Array, state: Any) -> Any:
        begin = jnp.minimum(number * size, vocab_size - size)
        first = number * size if vocab_size % size else None
        cut = lambda axis, leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, size, axis)
        columns = tuple(_map_columns(cut, each.columns) for each in factors)
        numbers = begin + jnp.arange(size).reshape(*(1 for _ in rows), size)
        return function(Slice(begin, numbers, first), columns, state)

    return jax.lax.fori_loop(0, -(-vocab_size // size), body, start)


def pull_back(
    factors: tuple[FactoredLogits, ...],
    slopes: Callable[..., tuple[Array, ...]],
    cotangent: Array,
) -> tuple[FactoredLogits, ...]:
    """Returns the gradients for the factors of a function of their logits.

    Args:
      factors: one or several models' logits.
      slopes: `(slice, *logits of the slice) -> the function's slopes in them`.
      cotangent: `[...]`, by which the slopes are multiplied.

    Returns:
      The gradients in the types of the factors; None for integers.
    """

    def add(part: Slice, columns: tuple[Columns, ...], so_far: Any) -> Any:
        pairs = [
            jax.vjp(lambda r, c, whole=own: finite(r, _filled(c, whole)), of_token, _floating(own))
            for of_token, own in zip(rows, columns, strict=True)
        ]
        gradients = []
        each_slope = slopes(part, *(values for values, _ in pairs))
        for (_, pull), slope, (of_rows, whole) in zip(pairs, each_slope, so_far, strict=True):
            more, of_slice = pull(part.counted(cotangent[..., None] * slope, 0.0))
            of_rows = jax.tree.map(jnp.add, of_rows, more)
            gradients.append((of_rows, _add_columns(whole, of_slice, part.begin)))
        return gradients

    rows = [each.rows for each in factors]
    # Sums over slices are in float32 or wider, whatever the factors are.
    wide = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
    trained = [each._replace(columns=_floating(each.columns)) for each in factors]
    start = [jax.tree.map(wide, tuple(each)) for each in trained]
    narrow = lambda leaf, like: leaf.astype(like.dtype)
    return tuple(
        jax.tree.map(narrow, FactoredLogits(*gradient), each)
        for gradient, each in zip(over_slices(factors, add, start), trained, strict=True)
    )


def _floating(columns: Columns) -> Columns:
    """Returns columns without integers, which have no gradient."""
    is_float = lambda axis, leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None
    return _map_columns(is_float, columns)


def _filled(columns: Columns, whole: Columns) -> Columns:
    """Returns columns with those of `whole` in the place of missing ones."""
    pairs = zip(columns, whole, strict=True)
    return Columns(*(other if leaf is None else leaf for leaf, other in pairs))


def _add_columns(whole: Columns, part: Columns, begin: Array) -> Columns:
    """Adds columns of a slice that begins at token `begin`."""

    def add(axis: int, leaf: Array, own: Array) -> Array:
        old = jax.lax.dynamic_slice_in_dim(leaf, begin, own.shape[axis], axis)
        return jax.lax.dynamic_update_slice_in_dim(leaf, old + own, begin, axis)

    return _map_columns(add, whole, part)


def _map_columns(function: Callable[..., Array | None], *columns: Columns) -> Columns:
    """Applies `(axis of the vocabulary, *leaves) -> leaf` to the columns that are present."""
    leaves = zip(VOCABULARY_AXES, *columns, strict=True)
    return Columns(*(None if leaf[1] is None else function(*leaf) for leaf in leaves))


def finite(rows: Rows, columns: Columns) -> Array:
    """Multiplies logits out, with `shatter.numerics.LOG_ZERO` in the place of -inf."""
    return finite_logs(multiply(rows, columns))
