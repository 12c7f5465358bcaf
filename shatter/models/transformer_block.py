"""A pre-norm transformer block: attention and a feed-forward network, with optional adapters."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.fused import fused_kernels, split_parts
from shatter.models.transformer_config import ACTIVATIONS, Rope, TransformerConfig
from shatter.numerics import LOG_ZERO
from shatter.types import Array


def _promote(
    inputs: Array, kernel: Array, bias: Array | None, *, dtype: Any
) -> tuple[Array, Array, Array | None]:
    """Promotes to the type of the computation all but a narrow kernel, see `narrow.py`."""
    if dtype is None or kernel.dtype.itemsize >= jnp.dtype(dtype).itemsize:
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=dtype)
    else:
        inputs, bias = nn.dtypes.promote_dtype(inputs, bias, dtype=dtype)
    return inputs, kernel, bias


def _product(inputs: Array, kernel: Array, numbers: Any, precision: Any = None) -> Array:
    """Multiplies by a kernel, which is widened for that, and again in the backward pass, if narrow.

    Otherwise the wide kernels of all blocks would be kept for the backward pass.
    """
    if kernel.dtype == inputs.dtype:
        return jax.lax.dot_general(inputs, kernel, numbers, precision)
    product = lambda x, k: jax.lax.dot_general(x, k.astype(x.dtype), numbers, precision)
    return jax.checkpoint(product)(inputs, kernel)


class _Linear(nn.DenseGeneral):
    """A dense layer that adds the low-rank adapters of the collection "lora" to its output.

    An adapter is `a [inputs, rank]` and `b [rank, outputs]`, inputs and outputs flattened. The
    adapter with the layer's own name adds to the whole output, the others to a part of it.

    Attributes:
      parts: the parts of a fused kernel with their numbers of entries, in order; see `fused.py`.
    """

    parts: tuple[tuple[str, int], ...] = ()
    promote_dtype: Any = _promote
    dot_general: Any = _product

    def __call__(self, inputs: Array) -> Array:
        outputs = super().__call__(inputs)
        if self.has_variable("params", "kernel_scale"):  # of integers, see narrow.py
            scale: Array = self.get_variable("params", "kernel_scale")
            outputs = outputs * scale.astype(outputs.dtype)[None]
        if not self.has_variable("lora", "adapters"):
            return outputs
        adapters: dict[str, dict[str, Array]] = self.get_variable("lora", "adapters")
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        flat = inputs.reshape(*inputs.shape[: inputs.ndim - len(axes)], -1).astype(outputs.dtype)

        def product(part: str, *shape: int) -> Array:
            if part not in adapters:
                return jnp.zeros((*flat.shape[:-1], *shape), flat.dtype)
            a, b = (adapters[part][side].astype(flat.dtype) for side in ("a", "b"))
            return ((flat @ a) @ b).reshape(*flat.shape[:-1], *shape)

        entries, *size = outputs.shape[flat.ndim - 1 :]
        if self.name in adapters:
            outputs = outputs + product(self.name, entries, *size)
        if any(part in adapters for part, _ in self.parts):
            pieces = [product(part, own_entries, *size) for part, own_entries in self.parts]
            outputs = outputs + jnp.concatenate(pieces, axis=flat.ndim - 1)
        return outputs


class Block(nn.Module):
    """Attention and a feed-forward network, which read norms of the residual stream and add to it.

    Attributes:
      config: the configuration of the transformer.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, Array | None, Array | None],
        layer: Array,
        index: Array,
        attend: Array,
        turn: tuple[Array, Array] | None,
    ) -> tuple[tuple[Array, Array | None, Array | None], None]:
        """Returns the residual stream after the block, and the cache with the block's new entries.

        The stream is flattened to rows because XLA on CPUs otherwise copies `[B, t, D]` to form a
        kernel's gradient. The cache of all layers is carried along so that every step of decoding
        writes it in place.

        Args:
          carry: the residual stream `[B t, D]`; the cached keys and the cached values of all
            layers, as in `Cache`, or None.
          layer: int `[]`, the number of this block.
          index: int `[]`, the first slot of the cache that is free.
          attend: bool `[B, t, slots]`, which slots a token may attend to.
          turn: the cosines and sines of rotary positions, `[B, t, 1, size / 2]`; None = learned
            positions.
        """
        config = self.config
        x, old_keys, old_values = carry
        query, key, value = self._project(norm(config, "attention_norm")(x), attend.shape[:2])
        if turn is not None:
            query, key = _rotate(query, turn), _rotate(key, turn)
        new_keys, keys = _append(old_keys, key, layer, index)
        new_values, values = _append(old_values, value, layer, index)
        mixed = _attention(query, keys, values, attend)
        x = x + _Linear(
            config.width,
            axis=(-2, -1),
            use_bias=config.attention_out_bias,
            dtype=config.dtype,
            name="attention_out",
        )(mixed.reshape(-1, config.num_heads, config.size_of_head))
        x = x + self._feed_forward(norm(config, "mlp_norm")(x))
        return (x, new_keys, new_values), None

    def _project(self, x: Array, batch_shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values `[B, t, heads, size]`, before they are rotated."""
        config = self.config
        parts = fused_kernels(config)["qkv"]
        qkv = _Linear(
            (sum(parts.values()), config.size_of_head),
            use_bias=config.qkv_bias,
            dtype=config.dtype,
            parts=tuple(parts.items()),
            name="qkv",
        )(x)
        query, key, value = split_parts(qkv.reshape(*batch_shape, *qkv.shape[1:]), parts)
        if config.qk_norm:
            query, key = norm(config, "query_norm")(query), norm(config, "key_norm")(key)
        return query, key, value

    def _feed_forward(self, x: Array) -> Array:
        config, hidden = self.config, self.config.hidden_width
        linear: Any = partial(_Linear, use_bias=config.mlp_bias, dtype=config.dtype)
        activation: Any = ACTIVATIONS[config.activation]
        if config.gated:
            parts = fused_kernels(config)["mlp_in"]
            shape = (sum(parts.values()), hidden)
            gate_up = linear(shape, parts=tuple(parts.items()), name="mlp_in")(x)
            gate, up = (part[..., 0, :] for part in split_parts(gate_up, parts))
            x = activation(gate) * up
        else:
            x = activation(linear(hidden, name="mlp_in")(x))
        self.sow("intermediates", "activations", x)
        return linear(config.width, name="mlp_out")(x)


def norm(config: TransformerConfig, name: str) -> Any:
    """Returns a norm as a flax module.

    Args:
      config: the configuration of the transformer.
      name: the name of the module. Norms of queries and keys are always RMS norms.
    """
    kind = (
        nn.RMSNorm if config.norm == "rms" or name in ("query_norm", "key_norm") else nn.LayerNorm
    )
    return kind(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)


def _rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotates `[B, t, heads, size]` by the angles whose cosines and sines are given."""
    cos, sin = turn
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def cos_sin(rope: Rope, positions: Array, size: int) -> tuple[Array, Array]:
    """Computes the cosines and sines of the angles by which rotary positions turn features.

    Args:
      rope: the frequencies.
      positions: `[B, t]`.
      size: the head size, in features.

    Returns:
      Cosines and sines, each `[B, t, 1, size / 2]`.
    """
    frequencies = rope.theta ** (-np.arange(0, size, 2) / size)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        turns = frequencies * rope.original_max_length / (2 * np.pi)
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)  # the share that is not scaled
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    angles = positions.astype(float)[..., None, None] * jnp.asarray(frequencies)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _append(
    cache: Array | None, new: Array, layer: Array, index: Array
) -> tuple[Array | None, Array]:
    """Writes new keys or values `[B, t, heads, size]` into the cache.

    Returns:
      The cache of all layers, and this layer's part of it, `[B, heads, slots, size]`. Without a
      cache, in training, that part is the new keys or values alone.
    """
    new = jnp.swapaxes(new, 1, 2)
    if cache is None:
        return None, new
    start = (layer, 0, 0, index, 0)
    cache = jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), start)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)


def _attention(query: Array, keys: Array, values: Array, attend: Array) -> Array:
    """Computes softmax(query . keys / sqrt(head size)) . values, `[B, t, heads, head size]`.

    Consecutive heads of queries share a head of keys. The softmax is computed in float32 or wider.
    `jax.nn.dot_product_attention` is not used because it computes the softmax in float32 at most,
    which would lose precision when the model runs in float64.
    """
    batch, length, heads, size = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, size)
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    scores = jnp.einsum("btkgs,bkus->bkgtu", grouped, keys, preferred_element_type=dtype)
    scores = jnp.where(attend[:, None, None], scores / size**0.5, LOG_ZERO)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bkgtu,bkus->btkgs", weights, values).reshape(batch, length, heads, size)
