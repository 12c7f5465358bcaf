"""How documents are continued token by token: by a model's cache, or by full forward passes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import checkify

from shatter.models import LanguageModel
from shatter.types import Array, Params

Step = Callable[[Any, Array, Array], tuple[Array, Any]]
"""`(past, token[N], t) -> (logits[N, V], past)`: the law of response token t after the token before
it. The past is the cache, or the tokens so far."""


class Continuation(NamedTuple):
    """Prompts that have been read, and how their responses go on.

    Attributes:
      past: what has been read, with a row for every response.
      token: int `[N]`, the last token of every row's prompt, which the first step reads.
      step: reads a token of every row and gives the law of the next one.
      take: `(past, rows[N]) -> past`, the chosen rows in their order; they must be rows of the same
        prompt.
    """

    past: Any
    token: Array
    step: Step
    take: Callable[[Any, Array], Any]


def continuation(
    lm: LanguageModel,
    params: Params,
    prompts: Array,
    valid: Array | None,
    num_samples: int,
    max_length: int,
) -> Continuation:
    """Reads prompts, and returns how their responses go on, by the model's cache if it has one.

    Args:
      lm: the language model.
      params: its parameters.
      prompts: int `[B, P]`.
      valid: bool `[B, P]`, false on padding, left or right; None = all true.
      num_samples: number of responses to each prompt, whose rows follow each other.
      max_length: largest number of response tokens.

    Returns:
      The continuation of `N = B num_samples` rows.
    """
    last = _last_valid(valid, prompts)
    token = jnp.repeat(
        jnp.take_along_axis(prompts, last[:, None], axis=1)[:, 0], num_samples, axis=0
    )
    make = _with_cache if lm.decode is not None else _without_cache
    past, step, take = make(lm, params, prompts, valid, last, num_samples, max_length)
    return Continuation(past, token, step, take)


@custom_vmap
def any_of_all_lanes(alive: Array) -> Array:
    """Returns whether any row goes on, under `jax.vmap` of all lanes together.

    A cond on it then stays one, where vmap turns a cond on a batch into a select.

    Args:
      alive: bool `[...]`.

    Returns:
      bool `[]`.
    """
    return jnp.any(alive)


@any_of_all_lanes.def_vmap
def _one_answer(axis_size: int, in_batched: list, alive: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_of_all_lanes(alive), False


def _last_valid(valid: Array | None, prompts: Array) -> Array:
    """Returns the column of the last token of every prompt that is not padding, `[B]`."""
    batch, prompt_length = prompts.shape
    if valid is None:
        return jnp.full(batch, prompt_length - 1)
    has_token = jnp.any(valid, axis=1)
    checkify.debug_check(
        jnp.all(has_token), "prompt {row} is all padding", row=jnp.argmin(has_token)
    )
    return prompt_length - 1 - jnp.argmax(valid[:, ::-1], axis=1)


def _with_cache(
    lm: LanguageModel,
    params: Params,
    prompts: Array,
    valid: Array | None,
    last: Array,
    num_samples: int,
    max_length: int,
) -> tuple[Any, Step, Callable[[Any, Array], Any]]:
    """Returns the first cache, the step of decoding with a cache, and how its rows are taken.

    The first cache holds every prompt without its last token, which the first step reads. The
    logits of this prefill are not used, so a compiled program does not compute them. In a prompt
    with padding on the right, the cache marks the last token as padding.
    """
    assert lm.init_cache is not None and lm.decode is not None and lm.take_cache is not None
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
    # The last token of a document is never read, so it needs no place in the cache.
    cache = lm.init_cache(batch, prompt_length + max_length - 1)
    if prompt_length > 1:
        _, cache = decode(params, cache, prompts[:, :-1], valid=valid)
    if num_samples > 1:
        cache = lm.take_cache(cache, jnp.repeat(jnp.arange(batch), num_samples))

    def step(cache: Any, token: Array, t: Array) -> tuple[Array, Any]:
        del t
        logits, cache = decode(params, cache, token[:, None])
        return logits[:, 0], cache

    return cache, step, lm.take_cache


def _without_cache(
    lm: LanguageModel,
    params: Params,
    prompts: Array,
    valid: Array | None,
    last: Array,
    num_samples: int,
    max_length: int,
) -> tuple[Any, Step, Callable[[Any, Array], Any]]:
    """Returns the first tokens, the step of decoding without a cache, and how rows are taken.

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

    return tokens, step, lambda tokens, rows: tokens[rows]
