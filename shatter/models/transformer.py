"""A decoder-only transformer, small and clear, with an explicit key-value cache."""

import dataclasses
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.models.base import LanguageModel
from shatter.types import Array, Key, Params

_UNROLL_UP_TO = 8
"""Layers are looped up to this depth, scanned above: a scan compiles in a time that does not grow
with depth, a loop runs faster while shallow (`python -m experiments.benchmark.run` prints both)."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
      vocab_size: V, number of tokens.
      max_length: largest number of valid tokens in a document, prompt included.
      width: D, size of the residual stream.
      num_layers: number of blocks.
      num_heads: attention heads; divides `width`.
      mlp_factor: hidden width of the feed-forward part over `width`.
    """

    vocab_size: int
    max_length: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    mlp_factor: int = 4

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be.

        Raises:
          ValueError: if a size is not positive or the heads do not divide the width.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be >= 1, found {getattr(self, field.name)}")
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads must divide width, found width {self.width}, heads {self.num_heads}"
            )


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
      keys: `[layers, B, length, heads, head size]`.
      values: `[layers, B, length, heads, head size]`.
      valid: bool `[B, length]`, true on slots that hold a token that is no padding.
      length: int `[]`, number of slots in use.
    """

    keys: Array
    values: Array
    valid: Array
    length: Array


class _Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array], index: Array, attend: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        width, heads = self.config.width, self.config.num_heads
        y = nn.LayerNorm(name="attention_norm")(x)
        qkv = nn.DenseGeneral((3, heads, width // heads), name="qkv")(y)
        query, key, value = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=1)
            for old, new in zip(cache, (key, value), strict=True)
        )
        past = (keys.astype(query.dtype), values.astype(query.dtype))
        mixed = jax.nn.dot_product_attention(query, *past, mask=attend[:, None])
        x = x + nn.DenseGeneral(width, axis=(-2, -1), name="attention_out")(mixed)
        y = nn.LayerNorm(name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(self.config.mlp_factor * width, name="mlp_in")(y))
        return x + nn.Dense(width, name="mlp_out")(y), (keys, values)


class _Transformer(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Array, Cache]:
        """tokens[B, t], valid[B, t] -> logits[B, t, V], features[B, t, D], cache."""
        config = self.config
        before = jnp.sum(cache.valid, axis=1, keepdims=True)
        positions = jnp.clip(before + jnp.cumsum(valid, axis=1) - 1, 0, config.max_length - 1)
        slots = cache.valid.shape[1]
        in_use = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
        own_slot = cache.length + jnp.arange(tokens.shape[1])
        causal = jnp.arange(slots)[None, :] <= own_slot[:, None]
        # A padding token attends to itself alone: a softmax over nothing would be NaN.
        itself = jnp.arange(slots)[None, :] == own_slot[:, None]
        attend = causal[None] & (in_use[:, None, :] | itself[None])

        embed = nn.Embed(config.vocab_size, config.width, name="token_embedding")
        place = nn.Embed(config.max_length, config.width, name="position_embedding")
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= _UNROLL_UP_TO else 1,
        )(config, name="blocks")
        x, (keys, values) = blocks(
            embed(tokens) + place(positions), (cache.keys, cache.values), cache.length, attend
        )
        features = nn.LayerNorm(name="final_norm")(x)
        logits = nn.Dense(config.vocab_size, name="head")(features)
        return logits, features, Cache(keys, values, in_use, cache.length + tokens.shape[1])


def transformer(config: TransformerConfig) -> LanguageModel:
    """A decoder-only transformer: pre-norm blocks, learned positions, GELU, untied head.

    One forward function serves training, prefill and decoding: `apply` is `decode` on an empty
    cache that the document fills. Parameters of the blocks are stacked over layers.

    Args:
      config: the sizes.

    Returns:
      A language model with `features`, `init_cache` and `decode`.
    """
    module = _Transformer(config)

    def run(params: Params, *args: Any) -> tuple[Array, Array, Cache]:
        return cast(tuple[Array, Array, Cache], module.apply(params, *args))

    def init_cache(batch: int, length: int) -> Cache:
        shape = (config.num_layers, batch, length, config.num_heads)
        empty = jnp.zeros((*shape, config.width // config.num_heads))
        return Cache(empty, empty, jnp.zeros((batch, length), bool), jnp.zeros((), int))

    def init(key: Key) -> Params:
        tokens = jnp.zeros((1, 1), int)
        params = module.init(key, tokens, tokens == 0, init_cache(1, 1))
        return jax.tree.map(lambda leaf: leaf.astype(float), params)  # float64 where jax has it

    def forward(params: Params, tokens: Array, valid: Array | None) -> tuple[Array, Array]:
        chex.assert_type(tokens, int)
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        chex.assert_equal_shape([tokens, valid])
        _check_tokens(tokens, valid, config)
        length = tokens.shape[-1]
        flat, flat_valid = tokens.reshape(-1, length), valid.reshape(-1, length)
        cache = init_cache(flat.shape[0], length)
        logits, features, _ = run(params, flat, flat_valid, cache)
        leading = (*tokens.shape, -1)
        return logits.reshape(leading), features.reshape(leading)

    def apply(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        return forward(params, tokens, valid)[0]

    def features(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        return forward(params, tokens, valid)[1]

    def decode(
        params: Params, cache: Cache, tokens: Array, *, valid: Array | None = None
    ) -> tuple[Array, Cache]:
        chex.assert_rank(tokens, 2)
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        logits, _, cache = run(params, tokens, valid, cache)
        return logits, cache

    return LanguageModel(init, apply, features, init_cache, decode)


def _check_tokens(tokens: Array, valid: Array, config: TransformerConfig) -> None:
    checkify.debug_check(
        jnp.all(~valid | ((tokens >= 0) & (tokens < config.vocab_size))),
        f"a token is out of range: expected 0 <= token < {config.vocab_size}, found between "
        "{low} and {high}",
        low=jnp.min(jnp.where(valid, tokens, 0)),
        high=jnp.max(jnp.where(valid, tokens, 0)),
    )
    checkify.debug_check(
        jnp.all(jnp.sum(valid, axis=-1) <= config.max_length),
        f"a document has {{longest}} tokens, over max_length {config.max_length}",
        longest=jnp.max(jnp.sum(valid, axis=-1)),
    )
