"""Beam search by the model's score, by a value, or by both."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents import response_mask
from shatter.documents.continuation import continuation
from shatter.inference import Twist, TwistModel
from shatter.inference.importance import has_mass
from shatter.inference.twists import guide
from shatter.models import LanguageModel
from shatter.numerics import LOG_ZERO, finite_logs
from shatter.search.base import Found, Reward, found, no_twist, num_rows
from shatter.types import Array, Key, Params


class _Beams(NamedTuple):
    """The best documents so far; a score of LOG_ZERO marks a row that holds none."""

    tokens: Array
    token: Array
    alive: Array
    log_probs: Array
    scores: Array
    past: Any
    guide_past: Any
    num_tokens: Array


def beam_search(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    reward: Reward,
    twist: Twist | TwistModel | None = None,
    prior_weight: float | Array = 1.0,
    top_k: int | None = None,
    budget: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
) -> Found:
    """Keeps the `budget // max_length` best documents at every length.

    A document's score is `prior_weight log p0(s) + log psi(s)`. Without a twist it is the model's
    own, so that the search is for the likeliest documents, and the reward only ranks what was
    found. With the twist r / beta at the end the search is for the likeliest of the posterior p0
    exp(r / beta) / Z, and with `prior_weight = 0` for the largest value. A document that has ended
    keeps its place while its score is among the best, so that with EOS the twist has to be right in
    its factor at each length too (see `losses.contrastive_twist_loss`).

    Args:
      lm: the language model p0.
      params: its parameters.
      key: not read, because nothing is drawn.
      prompt: int `[P]`, P >= 1.
      reward: see `Reward`.
      twist: log psi(s.a) of every next token, nats: the value in units of beta; None = 0.
      prior_weight: weight of log p0.
      top_k: only the k likeliest tokens under p0 follow a document; None = all.
      budget: largest number of laws of a next token.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding; None = all true.

    Returns:
      The documents of the last beam, the best score first; `best` is by the reward.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if the budget is below one response, `top_k` is below 1, or `eos` is not a token
        of the vocabulary.
    """
    del key
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, 1)
    width, prompt_length = num_rows(budget, max_length), prompt.shape[0]
    twist = no_twist(lm, params) if twist is None else twist
    row_valid = None if valid is None else valid[None]
    past, token, read, take = continuation(lm, params, prompt[None], row_valid, width, max_length)
    guiding = guide(twist, prompt, valid, width, max_length)
    first = jnp.where(jnp.arange(width) == 0, 0.0, LOG_ZERO)  # all rows are the same prompt
    start = _Beams(
        tokens=jnp.tile(jnp.pad(prompt, (0, max_length)), (width, 1)),
        token=token,
        alive=jnp.ones(width, bool),
        log_probs=jnp.zeros(width),
        scores=first,
        past=past,
        guide_past=guiding.past,
        num_tokens=jnp.zeros((), int),
    )

    def step(beams: _Beams, t: Array) -> tuple[_Beams, None]:
        logits, past = read(beams.past, beams.token, t)
        log_twists, guide_past = guiding.step(beams.guide_past, beams.tokens, beams.token, t)
        chex.assert_equal_shape([logits, log_twists])
        vocab_size = logits.shape[1]
        if eos is not None and not 0 <= eos < vocab_size:
            raise ValueError(f"eos must be a token, 0 <= eos < {vocab_size}, found {eos}")
        checkify.debug_check(
            ~jnp.any(jnp.isnan(logits) | jnp.isnan(log_twists)), "logits or log twists hold a NaN"
        )
        log_p0 = jax.nn.log_softmax(finite_logs(logits)).astype(float)
        total = beams.log_probs[:, None] + log_p0
        scores = prior_weight * total + finite_logs(log_twists).astype(float)
        scores = jnp.where(has_mass(log_p0) & _among(log_p0, top_k), scores, LOG_ZERO)
        goes_on = beams.alive & has_mass(beams.scores)
        # An ended document has one continuation, the filler, and stays what it is.
        filler = jnp.arange(vocab_size) == (0 if eos is None else eos)
        stays = jnp.where(filler, beams.scores[:, None], LOG_ZERO)
        scores = jnp.where(goes_on[:, None], jnp.maximum(scores, LOG_ZERO), stays)
        total = jnp.where(goes_on[:, None], total, beams.log_probs[:, None])
        best, place = jax.lax.top_k(scores.ravel(), width)
        rows, token = place // vocab_size, (place % vocab_size).astype(beams.token.dtype)
        column = token[:, None].astype(beams.tokens.dtype)
        tokens = beams.tokens[rows]
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, column, prompt_length + t, axis=1)
        ends = jnp.zeros(width, bool) if eos is None else token == eos
        return _Beams(
            tokens=tokens,
            token=token,
            alive=beams.alive[rows] & ~ends,
            log_probs=total.ravel()[place],
            scores=best,
            past=take(past, rows),
            guide_past=guiding.take(guide_past, rows),
            num_tokens=beams.num_tokens + jnp.sum(goes_on),
        ), None

    beams, _ = jax.lax.scan(step, start, jnp.arange(max_length))
    exists = has_mass(beams.scores)
    return found(
        reward,
        beams.tokens,
        response_mask(beams.tokens, prompt_length=prompt_length, eos=eos),
        jnp.where(exists, beams.log_probs, LOG_ZERO),
        beams.num_tokens,
        exists=exists,
    )


def _among(log_probs: Array, top_k: int | None) -> Array:
    """Returns which tokens are among the k likeliest, bool `[N, V]`; equal ones all are."""
    if top_k is None:
        return jnp.ones(log_probs.shape, bool)
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, found {top_k}")
    largest, _ = jax.lax.top_k(log_probs, min(top_k, log_probs.shape[-1]))
    return log_probs >= largest[:, -1:]
