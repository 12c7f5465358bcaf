"""A decoder-only transformer, from didactic to GPT-2, Llama and Qwen, with an explicit cache."""

from functools import partial
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.models.base import LanguageModel
from shatter.models.transformer_config import ACTIVATIONS, Rope, TransformerConfig
from shatter.numerics import LOG_ZERO
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


class _Block(nn.Module):
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
        y = _norm(config, "attention_norm")(x)
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
            query, key = _norm(config, "query_norm")(query), _norm(config, "key_norm")(key)
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
        x = x + self._feed_forward(_norm(config, "mlp_norm")(x))
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


def _norm(config: TransformerConfig, name: str) -> Any:
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


def _cos_sin(rope: Rope, positions: Array, size: int) -> tuple[Array, Array]:
    """Cosines and sines `[B, t, 1, size / 2]` of the angles at positions `[B, t]`."""
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
            turn = _cos_sin(config.rope, positions, config.size_of_head)
        elif is_text:
            place = nn.Embed(
                config.max_length, config.width, config.dtype, name="position_embedding"
            )
            x = x + place(positions)
        blocks = nn.scan(
            nn.remat(_Block, prevent_cse=False) if config.remat else _Block,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= _UNROLL_UP_TO else 1,
        )(config, name="blocks")
        carry = (x.reshape(-1, config.width), cache.keys, cache.values)
        layers = jnp.arange(config.num_layers)
        (rows, keys, values), _ = blocks(carry, layers, cache.length, attend, turn)
        features = _norm(config, "final_norm")(rows)
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
