"""A pre-norm transformer block: attention and a feed-forward network, with optional adapters."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shatter.models.attention import append, fused_attention, plain_attention
from shatter.models.fused import fused_kernels, split_parts
from shatter.models.rope import rotate
from shatter.models.transformer_config import ACTIVATIONS, TransformerConfig
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


class _OffsetNorm(nn.Module):
    """An RMS norm that multiplies by `1 + scale`, in float32 or wider.

    Attributes:
      epsilon: the constant that is added to the variance.
      dtype: the type of the output; None = that of inputs and scale.
    """

    epsilon: float
    dtype: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        dtype = jnp.result_type(x, scale)
        wide = jnp.promote_types(dtype, jnp.float32)
        normed = nn.RMSNorm(epsilon=self.epsilon, dtype=wide, use_scale=False)(x)
        factor = 1 + scale.astype(wide).reshape((1,) * (x.ndim - 1) + scale.shape)
        return (normed * factor).astype(self.dtype or dtype)


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
            positions. If there is a window, both have another first axis of two: for blocks with
            the window, and for the others.
        """
        config = self.config
        x, old_keys, old_values = carry
        if config.window is not None:
            kind = jnp.isin(layer, jnp.array(config.full_layers, int)).astype(int)
            select = partial(jax.lax.dynamic_index_in_dim, index=kind, keepdims=False)
            attend, turn = jax.tree.map(select, (attend, turn))
        query, key, value = self._project(norm(config, "attention_norm")(x), attend.shape[:2])
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        new_keys, keys = append(old_keys, key, layer, index)
        new_values, values = append(old_values, value, layer, index)
        # Decoding has one query or a few, for which the fused kernel is not made.
        is_fused = config.fused_attention and old_keys is None
        attention = fused_attention if is_fused else plain_attention
        divisor = config.attention_size or config.size_of_head
        mixed = attention(query, keys, values, attend, divisor)
        attended = _Linear(
            config.width,
            axis=(-2, -1),
            use_bias=config.attention_out_bias,
            dtype=config.dtype,
            name="attention_out",
        )(mixed.reshape(-1, config.num_heads, config.size_of_head))
        x = x + (norm(config, "attention_post_norm")(attended) if config.post_norms else attended)
        fed = self._feed_forward(norm(config, "mlp_norm")(x))
        x = x + (norm(config, "mlp_post_norm")(fed) if config.post_norms else fed)
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
    kind: Any = _OffsetNorm
    if not config.norm_offset:
        is_rms = config.norm == "rms" or name in ("query_norm", "key_norm")
        kind = nn.RMSNorm if is_rms else nn.LayerNorm
    return kind(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
