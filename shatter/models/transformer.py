"""A decoder-only transformer (GPT-2, Llama, Qwen, Gemma or our own) with an explicit cache."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.factored import Columns, FactoredLogits, Rows
from shatter.models.base import LanguageModel
from shatter.models.transformer_config import TransformerConfig
from shatter.models.transformer_module import Cache, Transformer
from shatter.types import Array, Key, Params


def transformer(config: TransformerConfig) -> LanguageModel:
    """Makes a decoder-only transformer with pre-norm blocks, as in GPT-2, Llama, Qwen and Gemma.

    One forward pass serves training, prefill and decoding: `apply` is `decode` without a cache. The
    parameters of the blocks are stacked over layers. The logits on padding are those of the last
    valid token before it in the same call, so that the text after a prompt padded on the right is
    scored correctly too. A window counts valid tokens; the cache keeps all tokens, those that have
    left the window too.

    Source: Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762; Radford et
    al., Language Models are Unsupervised Multitask Learners (2019); Touvron et al., LLaMA,
    https://arxiv.org/abs/2302.13971; Gemma Team, Gemma 3 Technical Report,
    https://arxiv.org/abs/2503.19786.

    Args:
      config: sizes and kinds of the parts.

    Returns:
      A language model with all optional functions. Its functions raise ValueError on documents of
      more than `max_length` tokens, on tokens outside the vocabulary and on tokens for which the
      cache has no slot. Under jit they can do so only where the shapes show it (no token is
      declared padding); `checkify` finds the rest.
    """
    module = Transformer(config)

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

    def factored(params: Params, tokens: Array, *, valid: Array | None = None) -> FactoredLogits:
        chex.assert_type(tokens, int)
        return factored_forward(config, params, tokens, valid)

    def decode(
        params: Params, cache: Cache, tokens: Array, *, valid: Array | None = None
    ) -> tuple[Array, Cache]:
        chex.assert_rank(tokens, 2)
        slots = cache.valid.shape[1]
        if tokens.shape[1] > slots:
            raise ValueError(f"found {tokens.shape[1]} tokens for a cache of {slots} slots")
        _check_length(tokens, valid, config)
        valid = _check_tokens(tokens, valid, config, cache)
        outputs: Any = module.apply(params, tokens, valid, cache)
        logits, _, _, cache = outputs
        return logits, cache

    return LanguageModel(init, apply, features, init_cache, decode, _take_cache, factored)


def _take_cache(cache: Cache, rows: Array) -> Cache:
    keys, values = (
        None if array is None else array[:, rows] for array in (cache.keys, cache.values)
    )
    return Cache(keys, values, cache.valid[rows], cache.length)


class Outputs(NamedTuple):
    """The results of a forward pass.

    Attributes:
      logits: `[..., T, V]`.
      features: `[..., T, D]`, the output of the final norm.
      hidden: `[..., T, D]`, the output of the last block.
      activations: `[..., T, H]`, the input of the last block's mlp_out; None if not asked for.
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
    """Runs a transformer without a cache.

    Args:
      config: the configuration of the transformer.
      params: its parameters.
      inputs: int `[..., T]`, tokens, or float `[..., T, D]`, what enters the first block.
      valid: bool `[..., T]`, false on padding; None = all true.
      with_activations: whether `Outputs.activations` are kept. Those of all blocks are held until
        the end, so that it takes memory in deep transformers.

    Returns:
      Logits, features and what else was asked for.

    Raises:
      ValueError: if there are more than `max_length` tokens and none is declared padding.
    """
    num_axes = 1 if jnp.issubdtype(inputs.dtype, jnp.integer) else 2
    shape = inputs.shape if num_axes == 1 else inputs.shape[:-1]
    tokens = inputs if num_axes == 1 else jnp.zeros(shape, int)
    _check_length(tokens, valid, config)
    valid = _check_tokens(tokens, valid, config).reshape(-1, shape[-1])
    no_cache = Cache(None, None, jnp.zeros_like(valid), jnp.zeros((), int))
    flat = inputs.reshape(-1, *inputs.shape[-num_axes:])
    (*outputs, _), sown = Transformer(config).apply(
        params, flat, valid, no_cache, mutable=["intermediates"] if with_activations else []
    )
    logits, features, hidden = (output.reshape(*shape, -1) for output in outputs)
    activations = None
    if with_activations:
        activations = sown["intermediates"]["blocks"]["activations"][0][-1].reshape(*shape, -1)
    return Outputs(logits, features, hidden, activations)


def factored_forward(
    config: TransformerConfig, params: Params, inputs: Array, valid: Array | None
) -> FactoredLogits:
    """Runs a transformer without a cache up to the product with the vocabulary.

    Args:
      config: the configuration of the transformer.
      params: its parameters.
      inputs: as in `forward`.
      valid: bool `[..., T]`, false on padding; None = all true.

    Returns:
      The logits `[..., T, V]` as factors.
    """
    features = forward(config, params, inputs, valid).features
    return FactoredLogits(Rows(features), vocabulary_columns(config, params, features.dtype))


def vocabulary_columns(config: TransformerConfig, params: Params, dtype: Any) -> Columns:
    """Returns what the logits read of the vocabulary.

    Args:
      config: the configuration of the transformer.
      params: its parameters.
      dtype: the type in which the bias of a head of its own is added.

    Returns:
      The columns.
    """
    if config.tied:
        embedding = params["params"]["token_embedding"]
        return Columns(embedding["embedding"], scale=embedding.get("embedding_scale"))
    head, bias = params["params"]["head"], None
    scale = head.get("kernel_scale")
    if config.head_bias:
        bias = head["bias"].astype(dtype)
        bias = bias if scale is None else bias * scale
    return Columns(kernel=head["kernel"], scale=scale, bias=bias)


def _check_length(tokens: Array, valid: Array | None, config: TransformerConfig) -> None:
    """Raises ValueError if the shape alone shows too long a document: none of it is padding."""
    if valid is None and tokens.shape[-1] > config.max_length:
        raise ValueError(f"found {tokens.shape[-1]} tokens, over max_length {config.max_length}")


def _require(condition: Array, message: str, **values: Array) -> None:
    """Raises ValueError if a condition is false; a traced one is left to checkify."""
    if isinstance(condition, jax.core.Tracer):
        checkify.debug_check(condition, message, **values)
    elif not condition:
        raise ValueError(message.format(**values))


def _check_tokens(
    tokens: Array, valid: Array | None, config: TransformerConfig, cache: Cache | None = None
) -> Array:
    """Checks tokens and lengths, and returns `valid`, all true if it was None."""
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
