"""Sampling documents from a language model, with the log-probs they were drawn with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents.scoring import finite_logits, response_mask
from shatter.models import LanguageModel
from shatter.numerics import masked_sum
from shatter.types import Array, Key, Params

_State = tuple[Any, Array]
"""What a step needs of the past (the cache, or the tokens so far), and the logits `[B, V]`."""
_Step = Callable[[Any, Array, Array], _State]
"""`(past, token[B], t) -> (past, logits)`: appends response token t."""


class Samples(NamedTuple):
    """Documents drawn from a language model.

    Attributes:
      tokens: int `[..., N, P + max_length]`; after EOS, EOS again.
      mask: bool `[..., N, P + max_length]`, true on the response's tokens, EOS included.
      log_probs: `[..., N]`, under the law drawn from (temperature applied), nats.
      raw_log_probs: `[..., N]`, under the model itself, nats.
    """

    tokens: Array
    mask: Array
    log_probs: Array
    raw_log_probs: Array


def sample(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    num_samples: int,
    max_length: int,
    temperature: float | Array = 1.0,
    eos: int | None = None,
    valid: Array | None = None,
) -> Samples:
    """Draws responses token by token in one scan, by the cache where the model has one.

    Args:
      lm: the language model.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]` or `[B, P]`, P >= 1.
      num_samples: N, responses a prompt.
      max_length: largest number of response tokens.
      temperature: divides the logits of every token, > 0.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool like `prompt`, false on its padding, left or right.

    Returns:
      The documents; the axis B is there if `prompt` has it.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size or the temperature is not positive, or `eos` is no token.
    """
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, {1, 2})
    is_cold = not isinstance(temperature, jax.Array) and temperature <= 0
    if num_samples < 1 or max_length < 1 or prompt.shape[-1] < 1 or is_cold:
        raise ValueError(
            "sample expects num_samples >= 1, max_length >= 1, at least one prompt token (BOS "
            f"where there is nothing else) and temperature > 0, found {num_samples}, {max_length}, "
            f"{prompt.shape[-1]} and {temperature}"
        )
    prompt_length = prompt.shape[-1]
    leading = (*prompt.shape[:-1], num_samples)
    rows = jnp.repeat(prompt.reshape(-1, prompt_length), num_samples, axis=0)
    if valid is not None:
        chex.assert_type(valid, bool)
        chex.assert_equal_shape([prompt, valid])
        valid = jnp.repeat(valid.reshape(-1, prompt_length), num_samples, axis=0)
    continuing = _decoding if lm.decode is not None else _rescoring
    (past, logits), step = continuing(lm, params, rows, valid, max_length)
    if eos is not None and not 0 <= eos < logits.shape[-1]:
        raise ValueError(f"eos must be a token, 0 <= eos < {logits.shape[-1]}, found {eos}")
    response, drawn_with, raw = _draw_response(
        step, past, logits, key, max_length=max_length, temperature=temperature, eos=eos
    )
    tokens = jnp.concatenate([rows, response.T.astype(rows.dtype)], axis=1)
    mask = response_mask(tokens, prompt_length=prompt_length, eos=eos)
    return Samples(
        tokens=tokens.reshape(*leading, -1),
        mask=mask.reshape(*leading, -1),
        log_probs=masked_sum(drawn_with.T, mask[:, prompt_length:]).reshape(leading),
        raw_log_probs=masked_sum(raw.T, mask[:, prompt_length:]).reshape(leading),
    )


def _draw_response(
    step: _Step,
    past: Any,
    logits: Array,
    key: Key,
    *,
    max_length: int,
    temperature: float | Array,
    eos: int | None,
) -> tuple[Array, Array, Array]:
    """Tokens, their log-probs as drawn and under the model, `[max_length, B]`."""
    checkify.debug_check(
        jnp.all(jnp.asarray(temperature) > 0),
        "expected temperature > 0, found {t}",
        t=jnp.asarray(temperature),
    )

    def draw(logits: Array, alive: Array, t: Array | int) -> tuple[Array, tuple[Array, ...]]:
        checkify.debug_check(~jnp.any(jnp.isnan(logits)), "logits hold a NaN")
        logits = finite_logits(logits)
        token = jax.random.categorical(jax.random.fold_in(key, t), logits / temperature)
        if eos is not None:
            token = jnp.where(alive, token, eos)
            alive = alive & (token != eos)
        drawn_with = _at(jax.nn.log_softmax(logits / temperature), token)
        return alive, (token, drawn_with, _at(jax.nn.log_softmax(logits), token))

    def next_token(carry: tuple, t: Array) -> tuple[tuple, tuple[Array, ...]]:
        past, token, alive = carry
        past, logits = step(past, token, t - 1)
        alive, drawn = draw(logits, alive, t)
        return (past, drawn[0], alive), drawn

    alive, first = draw(logits, jnp.ones(logits.shape[0], bool), 0)
    _, others = jax.lax.scan(next_token, (past, first[0], alive), jnp.arange(1, max_length))
    tokens, drawn_with, raw = (
        jnp.concatenate([one[None], more]) for one, more in zip(first, others, strict=True)
    )
    return tokens, drawn_with, raw


def _last_valid(valid: Array | None, prompt_length: int) -> Array | int:
    """The column of the last prompt token that is no padding."""
    if valid is None:
        return prompt_length - 1
    return prompt_length - 1 - jnp.argmax(valid[:, ::-1], axis=1)


def _decoding(
    lm: LanguageModel, params: Params, rows: Array, valid: Array | None, max_length: int
) -> tuple[_State, _Step]:
    """The start and the step with a cache."""
    assert lm.init_cache is not None and lm.decode is not None
    decode = lm.decode
    batch, prompt_length = rows.shape
    if valid is None:  # the model refuses, while tracing, documents that are too long for it
        longest = jnp.zeros((batch, prompt_length + max_length - 1), rows.dtype)
        jax.eval_shape(lm.apply, params, longest)
    cache = lm.init_cache(batch, prompt_length + max_length - 1)  # nothing follows the last token
    logits, cache = decode(params, cache, rows, valid=valid)

    def step(cache: Any, token: Array, t: Array) -> _State:
        del t
        logits, cache = decode(params, cache, token[:, None].astype(rows.dtype))
        return cache, logits[:, 0]

    return (cache, _column(logits, _last_valid(valid, prompt_length))), step


def _rescoring(
    lm: LanguageModel, params: Params, rows: Array, valid: Array | None, max_length: int
) -> tuple[_State, _Step]:
    """The start and the step without a cache, by a full forward pass a token."""
    prompt_length = rows.shape[1]
    tokens = jnp.pad(rows, ((0, 0), (0, max_length - 1)))  # nothing follows the last token
    if valid is not None:
        valid = jnp.pad(valid, ((0, 0), (0, max_length - 1)), constant_values=True)

    def logits_at(tokens: Array, column: Array | int) -> Array:
        return _column(lm.apply(params, tokens, valid=valid), column)

    def step(tokens: Array, token: Array, t: Array) -> _State:
        column = prompt_length + t
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, token[:, None].astype(rows.dtype), column, axis=1
        )
        return tokens, logits_at(tokens, column)

    last = _last_valid(None if valid is None else valid[:, :prompt_length], prompt_length)
    return (tokens, logits_at(tokens, last)), step


def _column(logits: Array, column: Array | int) -> Array:
    """`logits[b, column_b, :]`."""
    index = jnp.broadcast_to(jnp.asarray(column), logits.shape[:1])
    return jnp.take_along_axis(logits, index[:, None, None], axis=1)[:, 0]


def _at(log_probs: Array, token: Array) -> Array:
    return jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
