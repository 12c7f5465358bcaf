"""Logits as factors, and their product."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter.types import Array


class Rows(NamedTuple):
    """What logits have of each token.

    Attributes:
      features: `[..., D]`, in the type of the product.
      low: `[..., R]`, what multiplies `Columns.high`; None = nothing.
      scale: `[..., 1]`, by which all products are multiplied; None = 1.
      branch: `[..., D]`, what multiplies the vocabulary too, like the features; None = nothing.
      factor: `[..., 1]`, by which that product is multiplied first; there if `branch` is.
    """

    features: Array
    low: Array | None = None
    scale: Array | None = None
    branch: Array | None = None
    factor: Array | None = None


class Columns(NamedTuple):
    """What logits have of each token of the vocabulary: `embedding` or `kernel`, and the rest.

    Attributes:
      embedding: `[V, D]`, of a tied head.
      kernel: `[D, V]`, of a head of its own.
      high: `[R, V]`, the other factor of `Rows.low`.
      bias: `[V]`, which is added last; None = 0.
      scale: `[V]`, by which the product with embedding or kernel is multiplied; None = 1. It goes
        with integers, which have no gradient.
    """

    embedding: Array | None = None
    kernel: Array | None = None
    high: Array | None = None
    bias: Array | None = None
    scale: Array | None = None


VOCABULARY_AXES = (0, 1, 1, 0, 0)
"""The axis of the vocabulary of each of the columns."""


class FactoredLogits(NamedTuple):
    """Logits as factors, `((features + factor * branch) @ W + low @ high) * rows.scale + bias`.

    W is `kernel * columns.scale`, and both of its products are made, so that members that are
    vmapped can share them.

    `shatter.documents.log_prob`, `token_log_probs` and `shatter.losses.forward_kl_loss` take it in
    the place of logits. Call them inside the vmap that makes the factors, because an array that
    leaves a vmap is copied for every member, and the vocabulary is one.

    Attributes:
      rows: the factors of the tokens.
      columns: the factors of the vocabulary.
    """

    rows: Rows
    columns: Columns

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits, `[..., V]`."""
        for leaf, axis in zip(self.columns, VOCABULARY_AXES, strict=True):
            if leaf is not None:
                return (*self.rows.features.shape[:-1], leaf.shape[axis])
        raise ValueError("expected an embedding or a kernel among the columns, found neither")

    @property
    def dtype(self) -> Any:
        """The type of the logits, float32 or wider."""
        return jnp.promote_types(self.rows.features.dtype, jnp.float32)

    def map_rows(self, function: Callable[[Array], Array]) -> "FactoredLogits":
        """Applies a function, such as a slice of tokens, to the factors of the tokens."""
        return self._replace(rows=jax.tree.map(function, self.rows))


def multiply(rows: Rows, columns: Columns) -> Array:
    """Multiplies logits out, in float32 or wider.

    Args:
      rows: the factors of the tokens.
      columns: the factors of the vocabulary, or of a slice of it.

    Returns:
      `[..., V]`.
    """
    logits = _times_vocabulary(rows.features, columns)
    if rows.branch is not None and rows.factor is not None:
        logits += rows.factor * _times_vocabulary(rows.branch, columns)
    wide = lambda vector: jnp.expand_dims(vector, tuple(range(logits.ndim - 1)))
    if columns.scale is not None:
        logits *= wide(columns.scale)
    if rows.low is not None and columns.high is not None:
        logits += rows.low @ columns.high
    if rows.scale is not None:
        logits *= rows.scale
    if columns.bias is not None:
        logits += wide(columns.bias)
    return logits


def _times_vocabulary(rows: Array, columns: Columns) -> Array:
    """Multiplies rows by the embedding or the kernel, without its scale."""
    table, axis = columns.embedding, 1
    if table is None:
        table, axis = columns.kernel, 0
    assert table is not None
    return jax.lax.dot_general(
        rows,
        table.astype(rows.dtype),
        (((rows.ndim - 1,), (axis,)), ((), ())),
        preferred_element_type=jnp.promote_types(rows.dtype, jnp.float32),
    )


def as_array(logits: Array | FactoredLogits) -> Array:
    """Returns logits as an array.

    Args:
      logits: `[..., V]`, or their factors.

    Returns:
      `[..., V]`.
    """
    return multiply(*logits) if isinstance(logits, FactoredLogits) else logits
