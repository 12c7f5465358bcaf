"""Sampling of documents from a language model, with their log-probs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.documents.continuation import Step, any_of_all_lanes, continuation
from shatter.documents.filters import sampling_logits
from shatter.documents.scoring import eos_tuple, is_eos, response_mask
from shatter.models import LanguageModel
from shatter.numerics import finite_logs, masked_sum
from shatter.types import Array, Key, Params

_Law = Callable[[Array], Array]
"""`logits of the model -> logits of the law that tokens are drawn from`."""


class Samples(NamedTuple):
    """Documents drawn from a language model.

    Attributes:
      tokens: int `[..., N, P + max_length]`, filled with EOS (the first one, if there are several)
        after the EOS of the response.
      mask: bool `[..., N, P + max_length]`, true on the response's tokens, EOS included.
      log_probs: `[..., N]`, under the law that tokens were drawn from, with temperature and
        filters, nats.
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
    top_k: int | None = None,
    top_p: float | Array | None = None,
    min_p: float | Array | None = None,
    eos: int | tuple[int, ...] | None = None,
    valid: Array | None = None,
) -> Samples:
    """Draws responses to prompts token by token.

    The tokens are drawn in one scan, with the model's cache if it has one. A prompt is read once
    for all its responses. Once all responses have ended (under `jax.vmap`, those of all lanes) the
    model is not called any more. `top_k=1` is greedy decoding, which is not random and has
    `log_probs` of 0. `sampling_logits` defines the law that tokens are drawn from. Pad prompts with
    `pad_prompts`, because a program is compiled for every prompt length.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import documents, models
      >>> lm = models.tabular(vocab_size=4, max_length=3)
      >>> params = lm.init(jax.random.key(0))
      >>> prompt = jnp.array([0])
      >>> samples = documents.sample(
      ...     lm, params, jax.random.key(1), prompt, num_samples=5, max_length=3, eos=3
      ... )
      >>> samples.tokens.shape  # the prompt and up to three tokens after it
      (5, 4)
      >>> scored = documents.document_log_probs(lm, params, samples.tokens, samples.mask)
      >>> bool(jnp.allclose(samples.log_probs, scored, atol=1e-6))
      True

    Args:
      lm: the language model.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]` or `[B, P]`, P >= 1.
      num_samples: N, number of responses to each prompt.
      max_length: largest number of response tokens.
      temperature: divides the logits of every token, > 0.
      top_k: only the k likeliest tokens are drawn; None = all. See `sampling_logits`.
      top_p: of these, only the smallest set of tokens with this mass, 0 < top_p <= 1; None = all.
      min_p: of these, only tokens with this share of the largest probability; None = all.
      eos: the token that ends a response, or several; None = every response has `max_length`
        tokens.
      valid: bool in the shape of `prompt`, false on its padding, left or right.

    Returns:
      The documents, with the axis B if `prompt` has it.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size or the temperature is not positive, a filter is out of its range, or
        `eos` is not a token of the vocabulary.
    """
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, {1, 2})
    is_cold = not isinstance(temperature, jax.Array) and not temperature > 0
    if num_samples < 1 or max_length < 1 or prompt.shape[-1] < 1 or is_cold:
        raise ValueError(
            "sample expects num_samples >= 1, max_length >= 1, at least one prompt token (BOS if "
            f"there is nothing else) and temperature > 0, found {num_samples}, {max_length}, "
            f"{prompt.shape[-1]} and {temperature}"
        )
    if valid is not None:
        chex.assert_type(valid, bool)
        chex.assert_equal_shape([prompt, valid])
        valid = valid.reshape(-1, prompt.shape[-1])
    leading = (*prompt.shape[:-1], num_samples)
    prompts = jnp.asarray(prompt).reshape(-1, prompt.shape[-1])
    prompt_length = prompts.shape[1]
    law = lambda logits: sampling_logits(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    past, token, step, _ = continuation(lm, params, prompts, valid, num_samples, max_length)
    response, drawn_with, raw = _draw_response(
        step, past, token, key, max_length=max_length, law=law, greedy=top_k == 1, eos=eos
    )
    rows = jnp.repeat(prompts, num_samples, axis=0)
    tokens = jnp.concatenate([rows, response.T], axis=1)
    mask = response_mask(tokens, prompt_length=prompt_length, eos=eos)
    return Samples(
        tokens=tokens.reshape(*leading, -1),
        mask=mask.reshape(*leading, -1),
        log_probs=masked_sum(drawn_with.T, mask[:, prompt_length:]).reshape(leading),
        raw_log_probs=masked_sum(raw.T, mask[:, prompt_length:]).reshape(leading),
    )


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, buckets: Sequence[int] | None = None, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts on the left to one of a few lengths, so that few programs are compiled.

    jax compiles a program for every shape. Prompts of up to L tokens have about 2 log2 L lengths
    with the default buckets, instead of L.

    Args:
      prompts: B lists of token ids.
      buckets: the lengths to choose from; None = the powers of two and 1.5 times them: 1, 2, 3, 4,
        6, 8, 12, 16, ...
      fill: the token id of padding, which `sample` does not read.

    Returns:
      NumPy arrays for `sample`: the tokens, int32 `[B, P]`, where P is the smallest bucket that
      holds the longest prompt, and bool `[B, P]`, false on padding.

    Raises:
      ValueError: if there is no prompt, a prompt is empty, or the longest one is longer than all
        buckets.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) < 1:
        empty = f"prompt {lengths.index(0)} without tokens" if lengths else "no prompts"
        raise ValueError(
            "expected at least one prompt, each with a token (BOS if there is nothing else), found "
            f"{empty}"
        )
    longest = max(lengths)
    if buckets is None:
        power = 1 << (longest - 1).bit_length()
        buckets = (power * 3 // 4, power)
    fitting = [bucket for bucket in buckets if bucket >= longest]
    if not fitting:
        raise ValueError(
            f"expected prompts that fit into one of the buckets {tuple(buckets)}, found {longest} "
            f"tokens in prompt {lengths.index(longest)}: shorten it or add a bucket"
        )
    length = min(fitting)
    tokens = np.full((len(lengths), length), fill, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    return tokens, np.arange(length)[None] >= length - np.array(lengths)[:, None]


def _draw_response(
    step: Step,
    past: Any,
    token: Array,
    key: Key,
    *,
    max_length: int,
    law: _Law,
    greedy: bool,
    eos: int | tuple[int, ...] | None,
) -> tuple[Array, Array, Array]:
    """Draws the tokens of responses.

    Returns:
      The tokens, their log-probs under the law they were drawn from, and their log-probs under the
      model, `[max_length, B]` each.
    """
    ends = eos_tuple(eos)

    def draw(carry: tuple, t: Array) -> tuple[tuple, tuple[Array, ...]]:
        past, token, alive = carry
        logits, past = step(past, token, t)
        if any(not 0 <= end < logits.shape[-1] for end in ends):
            raise ValueError(f"eos must be a token, 0 <= eos < {logits.shape[-1]}, found {eos}")
        checkify.debug_check(~jnp.any(jnp.isnan(logits)), "logits hold a NaN")
        drawn_from = law(logits)
        scores = drawn_from
        if not greedy:  # the Gumbel trick, as in `jax.random.categorical`
            noise_key = jax.random.fold_in(key, t)
            scores = scores + jax.random.gumbel(noise_key, scores.shape, scores.dtype)
        new = _argmax(scores).astype(token.dtype)
        if ends:
            new = jnp.where(alive, new, ends[0])
            alive = alive & ~is_eos(new, ends)
        drawn_with = _at(jax.nn.log_softmax(drawn_from), new)
        raw = _at(jax.nn.log_softmax(finite_logs(logits)), new)
        return (past, new, alive), (new, drawn_with, raw)

    def idle(carry: tuple, t: Array) -> tuple[tuple, tuple[Array, ...]]:
        """Returns fillers once all responses have ended; the mask excludes them."""
        shapes = jax.eval_shape(draw, carry, t)[1]
        fills = (ends[0], 0, 0)
        out = (jnp.full(s.shape, f, s.dtype) for f, s in zip(fills, shapes, strict=True))
        return carry, tuple(out)

    def draw_if_any(carry: tuple, t: Array) -> tuple[tuple, tuple[Array, ...]]:
        return jax.lax.cond(any_of_all_lanes(carry[2]), draw, idle, carry, t)

    start = (past, token, jnp.ones(token.shape, bool))
    _, (tokens, drawn_with, raw) = jax.lax.scan(
        draw_if_any if ends else draw, start, jnp.arange(max_length)
    )
    return tokens, drawn_with, raw


def _argmax(scores: Array) -> Array:
    """Returns the index of the first largest entry in every row of `[B, V]`.

    `jnp.argmax` is several times slower on a CPU.
    """
    vocab_size = scores.shape[-1]
    is_largest = scores == jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, jnp.arange(vocab_size)[None], vocab_size - 1), axis=-1)


def _at(table: Array, index: Array) -> Array:
    return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]
