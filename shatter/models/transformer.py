"""A decoder-only transformer, from didactic to GPT-2, Llama and Qwen, with an explicit cache."""

from functools import partial
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.models.base import LanguageModel
from shatter.models.transformer_block import Block, cos_sin, norm
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array, Key, Params

_UNROLL_UP_TO = 8
"""Layers are looped up to this depth, scanned above: a loop runs faster at any depth, and takes the
longer to compile the deeper it is (`python -m experiments.benchmark.run` prints both)."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
      keys: `[layers, B, heads of keys, length, head size]`: as the products of attention read them,
        so that no step of decoding transposes the cache.
      values: `[layers, B, heads of keys, length, head size]`. Both are None in `apply`, which keeps
        nothing.
      valid: bool `[B, length]`, true on slots that hold a token that is no padding.
      length: int `[]`, number of slots in use.
    """

    keys: Array | None
    values: Array | None
    valid: Array
    length: Array


class _Transformer(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, inputs: Array, valid: Array, cache: Cache
    ) -> tuple[Array, Array, Array, Cache]:
        """inputs[B, t] (tokens) or [B, t, D] (what enters the first block), valid[B, t] -> all.

        Returns logits[B, t, V], features[B, t, D], what leaves the last block [B, t, D], cache.
        """
        config = self.config
        so_far = jnp.sum(cache.valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1)
        positions = jnp.clip(so_far - 1, 0, config.max_length - 1)
        slots, length = cache.valid.shape[1], valid.shape[1]
        in_use = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
        own_slot = cache.length + jnp.arange(length)
        causal = jnp.arange(slots)[None, :] <= own_slot[:, None]
        # Padding before all text attends to itself alone: a softmax over nothing would be NaN.
        itself = jnp.arange(slots)[None, :] == own_slot[:, None]
        attend = causal[None] & (in_use[:, None, :] | (itself[None] & (so_far == 0)[..., None]))

        embed = nn.Embed(config.vocab_size, config.width, config.dtype, name="token_embedding")
        is_text = inputs.ndim == 2
        x, turn = embed(_fill_padding(inputs, valid)) if is_text else inputs, None
        if config.rope is not None:
            turn = cos_sin(config.rope, positions, config.size_of_head)
        elif is_text:
            place = nn.Embed(
                config.max_length, config.width, config.dtype, name="position_embedding"
            )
            x = x + place(positions)
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False) if config.remat else Block,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= _UNROLL_UP_TO else 1,
        )(config, name="blocks")
        carry = (x.reshape(-1, config.width), cache.keys, cache.values)
        layers = jnp.arange(config.num_layers)
        (rows, keys, values), _ = blocks(carry, layers, cache.length, attend, turn)
        features = norm(config, "final_norm")(rows)
        dtype = None if config.dtype is None else jnp.promote_types(config.dtype, jnp.float32)
        product = partial(jax.lax.dot_general, preferred_element_type=dtype)
        if config.tied:
            table = embed.embedding.astype(features.dtype)
            logits = product(features, table, (((features.ndim - 1,), (1,)), ((), ())))
        else:
            logits = nn.Dense(
                config.vocab_size,
                use_bias=config.head_bias,
                dtype=config.dtype,
                dot_general=lambda x, y, numbers, precision=None: product(x, y, numbers),
                name="head",
            )(features)
        logits, features, rows = (y.reshape(*valid.shape, -1) for y in (logits, features, rows))
        return logits, features, rows, Cache(keys, values, in_use, cache.length + length)


def transformer(config: TransformerConfig) -> LanguageModel:
    """A decoder-only transformer with pre-norm blocks: of GPT-2's, Llama's and Qwen's kind.

    One forward function serves training, prefill and decoding: `apply` is `decode` that keeps no
    cache. Parameters of the blocks are stacked over layers. After padding
    in one call the logits are those of the last valid token before it, so what follows a prompt
    padded on the right is scored right too.

    Source: Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762; Radford et
    al., Language Models are Unsupervised Multitask Learners (2019); Touvron et al., LLaMA,
    https://arxiv.org/abs/2302.13971.

    Args:
      config: what it is made of.

    Returns:
      A language model with `features`, `init_cache`, `decode` and `repeat_cache`. They raise
      ValueError on documents of over `max_length` tokens, and on tokens for which the cache has no
      slot: where the shapes show it (none of the tokens is declared padding), and where values are
      known, outside of jit; inside, `checkify` finds the rest.
    """
    module = _Transformer(config)

    def run(params: Params, *args: Any) -> tuple[Array, Array, Array, Cache]:
        return cast(tuple[Array, Array, Array, Cache], module.apply(params, *args))

    def init_cache(batch: int, length: int) -> Cache:
        shape = (config.num_layers, batch, config.kv_heads, length, config.size_of_head)
        empty = jnp.zeros(shape, config.dtype or float)
        return Cache(empty, empty, jnp.zeros((batch, length), bool), jnp.zeros((), int))

    def init(key: Key) -> Params:
        tokens = jnp.zeros((1, 1), int)
        params = module.init(key, tokens, tokens == 0, init_cache(1, 1))
        return jax.tree.map(lambda leaf: leaf.astype(float), params)  # float64 where jax has it

    def apply(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        return forward(config, params, tokens, valid).logits

    def features(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        return forward(config, params, tokens, valid).features

    def decode(
        params: Params, cache: Cache, tokens: Array, *, valid: Array | None = None
    ) -> tuple[Array, Cache]:
        chex.assert_rank(tokens, 2)
        slots = cache.valid.shape[1]
        if tokens.shape[1] > slots:
            raise ValueError(f"found {tokens.shape[1]} tokens for a cache of {slots} slots")
        _check_length(tokens, valid, config)
        valid = _check_tokens(tokens, valid, config, cache)
        logits, _, _, cache = run(params, tokens, valid, cache)
        return logits, cache

    def repeat_cache(cache: Cache, num: int) -> Cache:
        keys, values = (
            None if array is None else jnp.repeat(array, num, axis=1)
            for array in (cache.keys, cache.values)
        )
        return Cache(keys, values, jnp.repeat(cache.valid, num, axis=0), cache.length)

    return LanguageModel(init, apply, features, init_cache, decode, repeat_cache)


class Outputs(NamedTuple):
    """What a forward pass gives.

    Attributes:
      logits: `[..., T, V]`.
      features: `[..., T, D]`, after the final norm.
      hidden: `[..., T, D]`, what leaves the last block.
      activations: `[..., T, H]`, what enters the last block's mlp_out; None if not asked for.
    """

    logits: Array
    features: Array
    hidden: Array
    activations: Array | None


def forward(
    config: TransformerConfig,
    params: Params,
    inputs: Array,
    valid: Array | None,
    *,
    with_activations: bool = False,
) -> Outputs:
    """A forward pass without a cache.

    Args:
      config: of the transformer.
      params: its parameters.
      inputs: int `[..., T]`, tokens, or float `[..., T, D]`, what enters the first block.
      valid: bool `[..., T]`, false on padding; None = all true.
      with_activations: whether those are kept; of all blocks until the end, so few are best.

    Returns:
      What it gives.

    Raises:
      ValueError: if there are over `max_length` tokens none of which is declared padding.
    """
    num_axes = 1 if jnp.issubdtype(inputs.dtype, jnp.integer) else 2
    shape = inputs.shape if num_axes == 1 else inputs.shape[:-1]
    tokens = inputs if num_axes == 1 else jnp.zeros(shape, int)
    _check_length(tokens, valid, config)
    valid = _check_tokens(tokens, valid, config).reshape(-1, shape[-1])
    nothing = Cache(None, None, jnp.zeros_like(valid), jnp.zeros((), int))
    flat = inputs.reshape(-1, *inputs.shape[-num_axes:])
    (*outputs, _), kept = _Transformer(config).apply(
        params, flat, valid, nothing, mutable=["intermediates"] if with_activations else []
    )
    logits, features, hidden = (output.reshape(*shape, -1) for output in outputs)
    activations = None
    if with_activations:
        activations = kept["intermediates"]["blocks"]["activations"][0][-1].reshape(*shape, -1)
    return Outputs(logits, features, hidden, activations)


def _fill_padding(tokens: Array, valid: Array) -> Array:
    """Every padding token becomes the last valid one before it, or 0: no id of it is looked up."""
    columns = jnp.where(valid, jnp.arange(tokens.shape[1]), -1)
    latest = jax.lax.cummax(columns, axis=1)
    filled = jnp.take_along_axis(tokens, jnp.maximum(latest, 0), axis=1)
    return jnp.where(latest < 0, 0, filled)


def _check_length(tokens: Array, valid: Array | None, config: TransformerConfig) -> None:
    """Refuses what the shape alone shows; with padding declared, a longer array may be right."""
    if valid is None and tokens.shape[-1] > config.max_length:
        raise ValueError(f"found {tokens.shape[-1]} tokens, over max_length {config.max_length}")


def _require(condition: Array, message: str, **values: Array) -> None:
    """Raises ValueError where the values are known; where they are traced, checkify sees it."""
    if isinstance(condition, jax.core.Tracer):
        checkify.debug_check(condition, message, **values)
    elif not condition:
        raise ValueError(message.format(**values))


def _check_tokens(
    tokens: Array, valid: Array | None, config: TransformerConfig, cache: Cache | None = None
) -> Array:
    """`valid`, all true where it is None, once the values are checked."""
    chex.assert_type(tokens, int)
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    chex.assert_type(valid, bool)
    chex.assert_equal_shape([tokens, valid])
    _require(
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
        _require(
            cache.length + tokens.shape[1] <= slots,
            f"the cache of {slots} slots is full: found {{used}} in use and {tokens.shape[1]} more",
            used=cache.length,
        )
    _require(
        jnp.all(lengths <= config.max_length),
        f"a document has {{longest}} tokens, over max_length {config.max_length}",
        longest=jnp.max(lengths),
    )
    return valid
