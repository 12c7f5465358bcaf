"""How documents are continued token by token: by a model's cache, or by full forward passes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.models import LanguageModel
from shatter.types import Array, Params

Step = Callable[[Any, Array, Array], tuple[Array, Any]]
"""`(past, token[B], t) -> (logits[B, V], past)`: the law of response token t after the token before
it. The past is the cache, or the tokens so far."""


def last_valid(valid: Array | None, prompts: Array) -> Array:
    """Returns the column of the last token of every prompt that is not padding, `[B]`."""
    batch, prompt_length = prompts.shape
    if valid is None:
        return jnp.full(batch, prompt_length - 1)
    has_token = jnp.any(valid, axis=1)
    checkify.debug_check(
        jnp.all(has_token), "prompt {row} is all padding", row=jnp.argmin(has_token)
    )
    return prompt_length - 1 - jnp.argmax(valid[:, ::-1], axis=1)


def with_cache(
    lm: LanguageModel,
    params: Params,
    prompts: Array,
    valid: Array | None,
    last: Array,
    num_samples: int,
    max_length: int,
) -> tuple[Any, Step]:
    """Returns the first cache and the step of decoding with a cache.

    The first cache holds every prompt without its last token, which the first step reads. The
    logits of this prefill are not used, so a compiled program does not compute them. In a prompt
    with padding on the right, the cache marks the last token as padding.
    """
    assert lm.init_cache is not None and lm.decode is not None
    decode = lm.decode
    batch, prompt_length = prompts.shape
    # While it is traced, the model raises an error for documents that are too long for it. The
    # last token of a document needs no position, because nothing is predicted after it. Where the
    # padding itself is traced, only one prompt token is known to be there.
    is_traced = isinstance(valid, jax.core.Tracer)
    prompt = (
        prompt_length if valid is None else 1 if is_traced else int(np.asarray(valid).sum(1).max())
    )
    longest = jnp.zeros((batch, max(prompt, 1) + max_length - 1), prompts.dtype)
    jax.eval_shape(lm.apply, params, longest)
    if valid is not None:
        valid = valid[:, :-1] & (jnp.arange(prompt_length - 1)[None] != last[:, None])
    shared = lm.repeat_cache is not None
    if not shared:
        prompts = jnp.repeat(prompts, num_samples, axis=0)
        valid = None if valid is None else jnp.repeat(valid, num_samples, axis=0)
    # The last token of a document is never read, so it needs no place in the cache.
    cache = lm.init_cache(prompts.shape[0], prompt_length + max_length - 1)
    if prompt_length > 1:
        _, cache = decode(params, cache, prompts[:, :-1], valid=valid)
    if lm.repeat_cache is not None and num_samples > 1:
        cache = lm.repeat_cache(cache, num_samples)

    def step(cache: Any, token: Array, t: Array) -> tuple[Array, Any]:
        del t
        logits, cache = decode(params, cache, token[:, None])
        return logits[:, 0], cache

    return cache, step


def without_cache(
    lm: LanguageModel,
    params: Params,
    prompts: Array,
    valid: Array | None,
    last: Array,
    num_samples: int,
    max_length: int,
) -> tuple[Any, Step]:
    """Returns the first tokens and the step of decoding without a cache.

    Every step is a full forward pass.
    """
    prompt_length = prompts.shape[1]
    room = ((0, 0), (0, max_length - 1))  # the last token is never read
    tokens = jnp.pad(jnp.repeat(prompts, num_samples, axis=0), room)
    last = jnp.repeat(last, num_samples)
    if valid is not None:
        valid = jnp.repeat(jnp.pad(valid, room, constant_values=True), num_samples, axis=0)

    def step(tokens: Array, token: Array, t: Array) -> tuple[Array, Any]:
        column = jnp.where(t == 0, last, prompt_length + t - 1)[:, None]
        here = jnp.arange(tokens.shape[1])[None] == column
        tokens = jnp.where(here, token[:, None], tokens)
        logits = lm.apply(params, tokens, valid=valid)
        return jnp.take_along_axis(logits, column[..., None], axis=1)[:, 0], tokens

    return tokens, step
