"""Logits that are kept as the product of features and a vocabulary, and are never held whole.

With large vocabularies the logits `[..., T, V]` are the largest array by far, and the log-probs of
given tokens need one column of them and their logsumexp. Both are computed here from slices of the
vocabulary, one after the other, with the closed form of the gradient (softmax minus one-hot), which
multiplies every slice out a second time. Nothing larger than a slice's logits is held, and the
gradient for the vocabulary's matrix is written slice by slice. There is no forward-mode derivative.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter.numerics import finite_logs
from shatter.types import Array

SLICE_SIZE = 2**20
"""The largest number of logits that are held at once: rows times columns of a slice.

Log-probs and gradients for features and vocabulary, as a multiple of the time with whole logits, on
one core of a shared CPU (32 MiB of L3 cache) with slices of 2^18, 2^20, 2^22 and 2^24:
504 x 8,192 logits at width 128: 0.51, 0.54, 0.61, not measured; 1,008 x 49,152 at width 576: 0.90,
0.86, 0.82, 1.02; 504 x 50,257 at width 768: 1.15, 1.12, 1.38, not measured; 1,008 x 262,144 at
width 640: not measured, 0.89, 0.83, 0.90. From 2^20 on, vmapped members multiply a slice's memory.
"""

ACCELERATOR_SLICE_SIZE = 2**25
"""The same on accelerators, whose products of few columns waste most of the device.

A DPO step of GPT-2 small in bfloat16 (16,384 x 50,257 logits) took 126, 75 and 50 ms on one H200
with slices of 2^20, 2^23 and 2^25, and 52 ms with whole logits, which take 9 GB more.
"""

MULTIPLIED_OUT_UP_TO = 2**25
"""The largest number of logits that `shatter.models.lazy_logits` multiplies out.

Slices cost a second product with the vocabulary. It is about as long as what they save where the
logits take 100 MB, as in a small step of GPT-2 small (504 x 50,257).
"""


def slice_size() -> int:
    """Returns the largest number of logits that are held at once on the devices in use.

    Returns:
      `SLICE_SIZE`, or `ACCELERATOR_SLICE_SIZE` if jax's default devices are no CPUs.
    """
    return SLICE_SIZE if jax.default_backend() == "cpu" else ACCELERATOR_SLICE_SIZE


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


_VOCABULARY_AXES = (0, 1, 1, 0, 0)  # of the columns


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
        for leaf, axis in zip(self.columns, _VOCABULARY_AXES, strict=True):
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


def target_log_probs(logits: FactoredLogits, targets: Array) -> Array:
    """Returns the log-probs of given tokens: `logits_target - logsumexp logits`.

    Args:
      logits: `[..., V]`.
      targets: int `[...]`, in the vocabulary.

    Returns:
      `[...]`, nats. Logits of -inf count as `shatter.numerics.LOG_ZERO`.
    """
    return _target_log_probs(_flat(logits), targets.ravel()).reshape(targets.shape)


def _flat(logits: FactoredLogits) -> FactoredLogits:
    """Flattens tokens to rows, because XLA on CPUs otherwise copies them for the gradient."""
    return logits.map_rows(lambda leaf: leaf.reshape(-1, leaf.shape[-1]))


@jax.custom_vjp
def _target_log_probs(logits: FactoredLogits, targets: Array) -> Array:
    return _log_probs_forward(logits, targets)[0]


def _log_probs_forward(logits: FactoredLogits, targets: Array) -> tuple[Array, Any]:
    def add(part: _Slice, columns: tuple[Columns, ...], sums: Any) -> Any:
        normaliser, chosen = sums
        values = _finite(logits.rows, columns[0])
        place = jnp.clip(targets - part.begin, 0, part.numbers.size - 1)
        value = jnp.take_along_axis(values, place[..., None], axis=-1)[..., 0]
        is_here = (targets >= part.begin) & (targets < part.begin + part.numbers.size)
        return _normalise(part, values, normaliser), jnp.where(is_here, value, chosen)

    start = (_start(logits), jnp.zeros(logits.shape[:-1], logits.dtype))
    (top, total), chosen = _over_slices((logits,), add, start)
    log_z = jnp.log(total) + top
    return chosen - log_z, (logits, targets, log_z)


def _log_probs_backward(residuals: Any, cotangent: Array) -> tuple[FactoredLogits, None]:
    logits, targets, log_z = residuals

    def slopes(part: _Slice, values: Array) -> tuple[Array]:
        is_target = targets[..., None] == part.numbers
        return (is_target - jnp.exp(values - log_z[..., None]),)

    return _pull_back((logits,), slopes, cotangent)[0], None


_target_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def kl_divergence(ref: FactoredLogits, own: FactoredLogits) -> Array:
    """Returns KL(ref || own) of the laws that two models' logits l and m define.

    `E[l - m] - logsumexp l + logsumexp m`, the expectation under the first.

    Args:
      ref: `[..., V]`, l.
      own: `[..., V]`, m.

    Returns:
      `[...]`, nats. Logits of -inf count as `shatter.numerics.LOG_ZERO`.
    """
    return _kl_divergence(_flat(ref), _flat(own)).reshape(ref.shape[:-1])


@jax.custom_vjp
def _kl_divergence(ref: FactoredLogits, own: FactoredLogits) -> Array:
    return _kl_forward(ref, own)[0]


def _kl_forward(ref: FactoredLogits, own: FactoredLogits) -> tuple[Array, Any]:
    def add(part: _Slice, columns: tuple[Columns, ...], sums: Any) -> Any:
        normaliser, own_normaliser, gap = sums
        values, own_values = _finite(ref.rows, columns[0]), _finite(own.rows, columns[1])
        new = _normalise(part, values, normaliser)
        weights = part.counted(jnp.exp(values - new[0][..., None]), 0.0)
        gap = gap * jnp.exp(normaliser[0] - new[0]) + jnp.sum(
            weights * (values - own_values), axis=-1
        )
        return new, _normalise(part, own_values, own_normaliser), gap

    start = (_start(ref), _start(own), jnp.zeros(ref.shape[:-1], ref.dtype))
    (top, total), (own_top, own_total), gap = _over_slices((ref, own), add, start)
    mean_gap = gap / total
    # Tops and totals apart, because a logsumexp is larger than they and would be rounded more.
    kl = mean_gap - (top - own_top) - (jnp.log(total) - jnp.log(own_total))
    return kl, (ref, own, mean_gap, jnp.log(total) + top, jnp.log(own_total) + own_top)


def _kl_backward(residuals: Any, cotangent: Array) -> tuple[FactoredLogits, ...]:
    ref, own, mean_gap, log_z, own_log_z = residuals

    def slopes(part: _Slice, values: Array, own_values: Array) -> tuple[Array, Array]:
        del part
        probs = jnp.exp(values - log_z[..., None])
        own_probs = jnp.exp(own_values - own_log_z[..., None])
        return probs * (values - own_values - mean_gap[..., None]), own_probs - probs

    return _pull_back((ref, own), slopes, cotangent)


_kl_divergence.defvjp(_kl_forward, _kl_backward)


class _Slice(NamedTuple):
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


def _over_slices(
    factors: tuple[FactoredLogits, ...],
    function: Callable[[_Slice, tuple[Columns, ...], Any], Any],
    start: Any,
) -> Any:
    """Folds `(slice, its columns of each of the factors, state) -> state` over the vocabulary."""
    *rows, vocab_size = factors[0].shape
    size = min(vocab_size, max(1, slice_size() // max(1, math.prod(rows))))

    def body(number: Array, state: Any) -> Any:
        begin = jnp.minimum(number * size, vocab_size - size)
        first = number * size if vocab_size % size else None
        cut = lambda axis, leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, size, axis)
        columns = tuple(_map_columns(cut, each.columns) for each in factors)
        numbers = begin + jnp.arange(size).reshape(*(1 for _ in rows), size)
        return function(_Slice(begin, numbers, first), columns, state)

    return jax.lax.fori_loop(0, -(-vocab_size // size), body, start)


def _pull_back(
    factors: tuple[FactoredLogits, ...],
    slopes: Callable[..., tuple[Array, ...]],
    cotangent: Array,
) -> tuple[FactoredLogits, ...]:
    """Returns the gradients for the factors of a function of their logits.

    Args:
      factors: one or several models' logits.
      slopes: `(slice, *logits of the slice) -> the function's slopes in them`.
      cotangent: `[...]`, by which the slopes are multiplied.
    """

    def add(part: _Slice, columns: tuple[Columns, ...], so_far: Any) -> Any:
        pairs = [
            jax.vjp(lambda r, c, whole=own: _finite(r, _filled(c, whole)), of_token, _floating(own))
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
        for gradient, each in zip(_over_slices(factors, add, start), trained, strict=True)
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
    leaves = zip(_VOCABULARY_AXES, *columns, strict=True)
    return Columns(*(None if leaf[1] is None else function(*leaf) for leaf in leaves))


def _finite(rows: Rows, columns: Columns) -> Array:
    return finite_logs(multiply(rows, columns))


def _start(logits: FactoredLogits) -> tuple[Array, Array]:
    """Returns the largest of no logits, and the sum of their exponentials."""
    rows = logits.shape[:-1]
    return jnp.full(rows, -jnp.inf, logits.dtype), jnp.zeros(rows, logits.dtype)


def _normalise(part: _Slice, values: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
    """Adds a slice to the largest logit, and to the sum of exponentials of logits minus it."""
    top, total = so_far
    values = part.counted(values, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(values, axis=-1))
    new = jnp.sum(jnp.exp(values - new_top[..., None]), axis=-1)
    return new_top, total * jnp.exp(top - new_top) + new


__all__ = [
    "MULTIPLIED_OUT_UP_TO",
    "SLICE_SIZE",
    "Columns",
    "FactoredLogits",
    "Rows",
    "as_array",
    "kl_divergence",
    "multiply",
    "slice_size",
    "target_log_probs",
]
