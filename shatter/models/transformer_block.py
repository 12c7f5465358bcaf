"""A pre-norm block of a transformer, with adapters beside its projections, and its attention."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.transformer_config import ACTIVATIONS, Rope, TransformerConfig
from shatter.numerics import LOG_ZERO
from shatter.types import Array


class _Linear(nn.DenseGeneral):
    """A dense layer, to which low-rank adapters add where the collection "lora" has them.

    An adapter is `a [in, rank]` and `b [rank, out]`, in and out in flattened form. That of the
    layer's own name adds to the whole output; others to a part of the output's first axis: `parts`
    are their names and sizes in order.
    """

    parts: tuple[tuple[str, int], ...] = ()

    def __call__(self, inputs: Array) -> Array:
        outputs = super().__call__(inputs)
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

        first, *others = outputs.shape[flat.ndim - 1 :]
        if self.name in adapters:
            outputs = outputs + product(self.name, first, *others)
        if any(part in adapters for part, _ in self.parts):
            pieces = [product(part, size, *others) for part, size in self.parts]
            outputs = outputs + jnp.concatenate(pieces, axis=flat.ndim - 1)
        return outputs


class Block(nn.Module):
    """Attention and the feed-forward part, each behind a norm and beside the residual stream.

    Attributes:
      config: of the transformer.
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
        """x[B t, D], the cache of all layers -> the same.

        Rows, for XLA on CPUs copies [B, t, D] to get a kernel's gradient. The whole cache is
        carried, so that every step of decoding writes it in place.
        """
        config = self.config
        x, old_keys, old_values = carry
        heads, kv_heads, size = config.num_heads, config.kv_heads, config.size_of_head
        y = norm(config, "attention_norm")(x)
        qkv = _Linear(
            (heads + 2 * kv_heads, size),
            use_bias=config.qkv_bias,
            dtype=config.dtype,
            parts=(("query", heads), ("key", kv_heads), ("value", kv_heads)),
            name="qkv",
        )(y)
        qkv = qkv.reshape(*attend.shape[:2], *qkv.shape[1:])
        query, key, value = jnp.split(qkv, (heads, heads + kv_heads), axis=-2)
        if config.qk_norm:
            query, key = norm(config, "query_norm")(query), norm(config, "key_norm")(key)
        if turn is not None:
            query, key = _turn(query, turn), _turn(key, turn)
        new_keys, keys = _append(old_keys, key, layer, index)
        new_values, values = _append(old_values, value, layer, index)
        mixed = _attention(query, keys, values, attend)
        x = x + _Linear(
            config.width,
            axis=(-2, -1),
            use_bias=config.attention_out_bias,
            dtype=config.dtype,
            name="attention_out",
        )(mixed.reshape(-1, heads, size))
        x = x + self._feed_forward(norm(config, "mlp_norm")(x))
        return (x, new_keys, new_values), None

    def _feed_forward(self, x: Array) -> Array:
        config, hidden = self.config, self.config.hidden_width
        linear: Any = partial(_Linear, use_bias=config.mlp_bias, dtype=config.dtype)
        activation: Any = ACTIVATIONS[config.activation]
        if config.gated:
            parts = (("gate", 1), ("up", 1))
            gate_up = linear((2, hidden), parts=parts, name="mlp_in")(x)
            x = activation(gate_up[..., 0, :]) * gate_up[..., 1, :]
        else:
            x = activation(linear(hidden, name="mlp_in")(x))
        self.sow("intermediates", "activations", x)
        return linear(config.width, name="mlp_out")(x)


def norm(config: TransformerConfig, name: str) -> Any:
    """A norm of a transformer.

    Args:
      config: of the transformer.
      name: of the module; those of queries and keys are RMS norms always.

    Returns:
      A flax module.
    """
    kind = (
        nn.RMSNorm if config.norm == "rms" or name in ("query_norm", "key_norm") else nn.LayerNorm
    )
    return kind(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)


def _turn(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotates `[B, t, heads, size]` by cosines and sines `[B, t, 1, size / 2]`."""
    cos, sin = turn
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def cos_sin(rope: Rope, positions: Array, size: int) -> tuple[Array, Array]:
    """Turns positions into the angles by which features turn.

    Args:
      rope: how.
      positions: `[B, t]`.
      size: features of a head.

    Returns:
      Cosines and sines `[B, t, 1, size / 2]`.
    """
    frequencies = rope.theta ** (-np.arange(0, size, 2) / size)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        turns = frequencies * rope.original_max_length / (2 * np.pi)
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)  # the share that is not divided
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    angles = positions.astype(float)[..., None, None] * jnp.asarray(frequencies)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _append(
    cache: Array | None, new: Array, layer: Array, index: Array
) -> tuple[Array | None, Array]:
    """The cache of all layers with `new[B, t, heads, size]` in it, and what it holds of the layer.

    Without a cache (training) that is `new` alone, `[B, heads, t, size]`.
    """
    new = jnp.swapaxes(new, 1, 2)
    if cache is None:
        return None, new
    start = (layer, 0, 0, index, 0)
    cache = jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), start)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)


def _attention(query: Array, keys: Array, values: Array, attend: Array) -> Array:
    """softmax(query . keys / sqrt(head size)) . values: `[B, t, heads, head size]`.

    Heads of queries share those of keys in order. The softmax is in float32 at least.
    `jax.nn.dot_product_attention` has it in float32 at most, which would end the exactness of
    float64 here.
    """
    batch, length, heads, size = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, size)
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    scores = jnp.einsum("btkgs,bkus->bkgtu", grouped, keys, preferred_element_type=dtype)
    scores = jnp.where(attend[:, None, None], scores / size**0.5, LOG_ZERO)
    shares = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bkgtu,bkus->btkgs", shares, values).reshape(batch, length, heads, size)
