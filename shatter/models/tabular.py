"""A language model with a logit vector for every prefix, for exact computations."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.models.base import LanguageModel
from shatter.types import Array, Key, Params

_MAX_PREFIXES = 10_000_000


def tabular(
    *, vocab_size: int, max_length: int, num_prompts: int = 1, init_scale: float = 1.0
) -> LanguageModel:
    """Makes a language model that is a table of logits by prompt and prefix of the response.

    It can represent every law over responses of at most `max_length` tokens. The parameters are one
    array `[num_prompts, 1 + V + ... + V^(max_length - 1), V]`, with prefixes in the order of their
    length and then of their tokens, read as a number in base V.

    Args:
      vocab_size: V, the number of tokens.
      max_length: the largest number of tokens of a response.
      num_prompts: the number of prompts; token 0 of a document is the prompt's id, from 0.
      init_scale: the standard deviation of the Gaussian initial logits.

    Returns:
      A language model. After `max_length` response tokens its logits are 0.

    Raises:
      ValueError: if a size is not positive or the table would have over ten million prefixes.
    """
    if vocab_size < 2 or max_length < 1 or num_prompts < 1:
        raise ValueError(
            "tabular expects vocab_size >= 2, max_length >= 1 and num_prompts >= 1, found "
            f"{vocab_size}, {max_length} and {num_prompts}"
        )
    level_starts = [sum(vocab_size**t for t in range(level)) for level in range(max_length + 1)]
    num_prefixes = level_starts[-1]
    if num_prompts * num_prefixes > _MAX_PREFIXES:
        raise ValueError(
            f"a table of {num_prompts} prompts x {num_prefixes} prefixes is over the limit of "
            f"{_MAX_PREFIXES}: lower vocab_size ** max_length, or use a transformer"
        )

    def init(key: Key) -> Params:
        return init_scale * jax.random.normal(key, (num_prompts, num_prefixes, vocab_size))

    def apply(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        chex.assert_shape(params, (num_prompts, num_prefixes, vocab_size))
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        chex.assert_equal_shape([tokens, valid])
        position = jnp.cumsum(valid, axis=-1) - 1  # of the last valid token; -1 before the first
        is_prompt, is_response = valid & (position == 0), valid & (position > 0)
        _check_tokens(tokens, is_prompt, num_prompts, "prompt id")
        _check_tokens(tokens, is_response, vocab_size, "token")
        prompt = jnp.sum(jnp.where(is_prompt, tokens, 0), axis=-1, keepdims=True)
        offsets = [jnp.zeros(tokens.shape[:-1], int)]  # of the prefix within its level, in base V
        for t in range(tokens.shape[-1]):
            offset = offsets[-1] * vocab_size + tokens[..., t]
            offsets.append(jnp.where(is_response[..., t], offset, offsets[-1]))
        level = jnp.clip(position, 0, max_length)
        prefix = jnp.asarray(level_starts)[level] + jnp.stack(offsets[1:], axis=-1)
        inside = position < max_length
        prompt, prefix = jnp.broadcast_to(prompt, prefix.shape), jnp.where(inside, prefix, 0)
        return jnp.where(inside[..., None], params[prompt, prefix], 0.0)

    return LanguageModel(init=init, apply=apply)


def _check_tokens(tokens: Array, where: Array, size: int, name: str) -> None:
    checkify.debug_check(
        jnp.all(~where | ((tokens >= 0) & (tokens < size))),
        f"a {name} is out of range: expected 0 <= {name} < {size}, found between {{low}} and "
        "{high}",
        low=jnp.min(jnp.where(where, tokens, 0)),
        high=jnp.max(jnp.where(where, tokens, 0)),
    )
