"""A decoder-only transformer, small and clear, with an explicit key-value cache."""

import dataclasses
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.models.base import LanguageModel
from shatter.numerics import LOG_ZERO
from shatter.types import Array, Key, Params

_UNROLL_UP_TO = 8
"""Layers are looped up to this depth, scanned above: a loop runs faster at any depth, and takes the
longer to compile the deeper it is (`python -m experiments.benchmark.run` prints both)."""


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
        mixed = _attention(query, keys, values, attend)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), name="attention_out")(mixed)
        y = nn.LayerNorm(name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(self.config.mlp_factor * width, name="mlp_in")(y))
        return x + nn.Dense(width, name="mlp_out")(y), (keys, values)


def _attention(query: Array, keys: Array, values: Array, attend: Array) -> Array:
    """softmax(query . keys / sqrt(head size)) . values: `[B, t, heads, head size]`.

    The softmax is in float32 at least. `jax.nn.dot_product_attention` has it in float32 at most,
    which would end the exactness of float64 here.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bths,buhs->bhtu", query, keys.astype(query.dtype)).astype(dtype)
    scores = jnp.where(attend[:, None], scores / query.shape[-1] ** 0.5, LOG_ZERO)
    shares = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bhtu,buhs->bths", shares, values.astype(query.dtype))


class _Transformer(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Array, Cache]:
        """tokens[B, t], valid[B, t] -> logits[B, t, V], features[B, t, D], cache."""
        config = self.config
        so_far = jnp.sum(cache.valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1)
        positions = jnp.clip(so_far - 1, 0, config.max_length - 1)
        tokens = _fill_padding(tokens, valid)
        slots = cache.valid.shape[1]
        in_use = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
        own_slot = cache.length + jnp.arange(tokens.shape[1])
        causal = jnp.arange(slots)[None, :] <= own_slot[:, None]
        # Padding before all text attends to itself alone: a softmax over nothing would be NaN.
        itself = jnp.arange(slots)[None, :] == own_slot[:, None]
        attend = causal[None] & (in_use[:, None, :] | (itself[None] & (so_far == 0)[..., None]))

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
    cache that the document fills. Parameters of the blocks are stacked over layers. After padding
    in one call the logits are those of the last valid token before it, so what follows a prompt
    padded on the right is scored right too.

    Args:
      config: the sizes.

    Returns:
      A language model with `features`, `init_cache` and `decode`. `apply` raises ValueError on
      documents of over `max_length` tokens none of which is declared padding.
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
        length = tokens.shape[-1]
        if valid is None and length > config.max_length:
            raise ValueError(f"found {length} tokens, over max_length {config.max_length}")
        valid = _check_tokens(tokens, valid, config)
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
        valid = _check_tokens(tokens, valid, config, cache)
        logits, _, cache = run(params, tokens, valid, cache)
        return logits, cache

    return LanguageModel(init, apply, features, init_cache, decode)


def _fill_padding(tokens: Array, valid: Array) -> Array:
    """Every padding token becomes the last valid one before it, or 0: no id of it is looked up."""
    columns = jnp.where(valid, jnp.arange(tokens.shape[1]), -1)
    latest = jax.lax.cummax(columns, axis=1)
    filled = jnp.take_along_axis(tokens, jnp.maximum(latest, 0), axis=1)
    return jnp.where(latest < 0, 0, filled)


def _check_tokens(
    tokens: Array, valid: Array | None, config: TransformerConfig, cache: Cache | None = None
) -> Array:
    """`valid`, all true where it is None; what is checked here on values, checkify alone sees."""
    chex.assert_type(tokens, int)
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    chex.assert_type(valid, bool)
    chex.assert_equal_shape([tokens, valid])
    checkify.debug_check(
        jnp.all(~valid | ((tokens >= 0) & (tokens < config.vocab_size))),
        f"a token is out of range: expected 0 <= token < {config.vocab_size}, found between "
        "{low} and {high}",
        low=jnp.min(jnp.where(valid, tokens, 0)),
        high=jnp.max(jnp.where(valid, tokens, 0)),
    )
    lengths = jnp.sum(valid, axis=-1)
    if cache is not None:
        lengths = lengths + jnp.sum(cache.valid, axis=-1)
        slots = cache.valid.shape[1]
        checkify.debug_check(
            cache.length + tokens.shape[1] <= slots,
            f"the cache of {slots} slots is full: found {{used}} in use and {tokens.shape[1]} more",
            used=cache.length,
        )
    checkify.debug_check(
        jnp.all(lengths <= config.max_length),
        f"a document has {{longest}} tokens, over max_length {config.max_length}",
        longest=jnp.max(lengths),
    )
    return valid
