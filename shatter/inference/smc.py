"""Sequential Monte Carlo with twists, and decoding by a twist without weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents import Samples, response_mask
from shatter.documents.continuation import continuation
from shatter.inference.importance import (
    effective_sample_size,
    has_mass,
    log_evidence,
    resample,
)
from shatter.inference.twists import Twist, TwistModel, guide
from shatter.models import LanguageModel
from shatter.numerics import LOG_ZERO, finite_logs
from shatter.types import Array, Key, Params


class Particles(NamedTuple):
    """Weighted documents that represent the law p0(x) psi(x) / Z.

    Attributes:
      tokens: int `[N, P + max_length]`, filled with EOS after the first EOS of the response.
      mask: bool `[N, P + max_length]`, true on the response's tokens, EOS included.
      log_weights: `[N]`, nats, including the evidence of earlier resamplings, so that over keys
        `E mean_i w_i f(x_i) = Z E_p f` for every f; LOG_ZERO for impossible documents.
      log_evidence: `[]`, log Z_hat, the log of the mean weight; Z_hat is an unbiased estimate of Z.
      effective_sample_size: `[]`, of these weights; it does not reflect the diversity that
        resampling has lost.
      num_resamplings: int `[]`, number of resamplings.
      raw_log_probs: `[N]`, log p0 of the documents, nats.
      num_tokens: int `[]`, the laws of a next token that were needed, one for every document that
        was not at its end, at every step.
    """

    tokens: Array
    mask: Array
    log_weights: Array
    log_evidence: Array
    effective_sample_size: Array
    num_resamplings: Array
    raw_log_probs: Array
    num_tokens: Array


class _Rows(NamedTuple):
    """The documents so far, their last token, which of them go on, and what has been read."""

    tokens: Array
    token: Array
    alive: Array
    past: Any
    guide_past: Any


class _Cloud(NamedTuple):
    """The documents so far, their log psi, log p0 and log weights, and two counts."""

    rows: _Rows
    log_twists: Array
    raw_log_probs: Array
    log_weights: Array
    num_resamplings: Array
    num_tokens: Array


class _Drawn(NamedTuple):
    """Documents with one more token, and the log-probs and twists of that token, `[N]` each."""

    rows: _Rows
    log_probs: Array
    raw_log_probs: Array
    log_twists: Array
    log_normaliser: Array


class _Extension(NamedTuple):
    """Documents that are prompts yet, how they get a token, and how some of them are taken."""

    start: _Rows
    extend: Callable[[Key, _Rows, Array], _Drawn]
    take: Callable[[_Rows, Array], _Rows]


def smc(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    twist: Twist | TwistModel,
    num_particles: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
    potential: Callable[[Array, Array], Array] | None = None,
    twisted_proposal: bool = True,
    resample_below: float | Array = 0.5,
) -> Particles:
    """Draws weighted samples of p0(x) psi(x) / Z, guided by the twist token by token.

    With the twisted proposal, a token is drawn from a ~ p0(a | s) psi(s.a) / n(s), where
    `n(s) = sum_a p0(a | s) psi(s.a)`, and the log weight grows by `log n(s) - log psi(s)`.
    Otherwise a ~ p0 and it grows by `log psi(s.a) - log psi(s)`. psi of the prompt is 1. Z_hat is
    unbiased for any twist before the end of documents; a better twist makes the weights vary less.
    Before each token the particles are resampled systematically if their effective sample size is
    small. The model is read with its cache if it has one, and so is a `TwistModel`.

    A learned twist is a guess at the end of documents too. With `potential`, the log weight of
    every document grows by its own potential less the twist's at last, so that the target has the
    potential whatever the twist says.

    Source: Zhao, Brekelmans, Makhzani, Grosse, Probabilistic Inference in Language Models via
    Twisted Sequential Monte Carlo, https://arxiv.org/abs/2404.17546.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      twist: see `Twist`; at a document's end it gives the log potential r / beta itself, unless
        `potential` does.
      num_particles: N.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding, left or right; None = all true.
      potential: `(tokens[N, T], mask[N, T]) -> [N]`, r / beta of whole documents, nats; None = the
        twist is right at their end.
      twisted_proposal: whether tokens are drawn with the twist or from p0 alone.
      resample_below: resample if the effective sample size is below this share of N; 0 = never,
        1 = before every token, unless all weights are equal.

    Returns:
      The particles. If all weights are zero, `log_evidence` is LOG_ZERO.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size is not positive, or `eos` is not a token of the vocabulary.
    """
    start, extend, take = _extension(
        lm, params, prompt, valid, twist, num_particles, max_length, eos, twisted=twisted_proposal
    )

    def step(cloud: _Cloud, t: Array) -> tuple[_Cloud, None]:
        resample_key, draw_key = jax.random.split(jax.random.fold_in(key, t))
        cloud = _resampled(resample_key, cloud, resample_below, take)
        alive = cloud.rows.alive
        drawn = extend(draw_key, cloud.rows, t)
        after = drawn.log_normaliser if twisted_proposal else drawn.log_twists
        log_weights = _added(cloud.log_weights, jnp.where(alive, after - cloud.log_twists, 0.0))
        return cloud._replace(
            rows=drawn.rows,
            log_twists=jnp.where(alive, drawn.log_twists, cloud.log_twists),
            raw_log_probs=cloud.raw_log_probs + jnp.where(alive, drawn.raw_log_probs, 0.0),
            log_weights=log_weights,
            num_tokens=cloud.num_tokens + jnp.sum(alive),
        ), None

    zeros, none = jnp.zeros(num_particles), jnp.zeros((), int)
    cloud, _ = jax.lax.scan(
        step, _Cloud(start, zeros, zeros, zeros, none, none), jnp.arange(max_length)
    )
    tokens, log_weights = cloud.rows.tokens, cloud.log_weights
    mask = response_mask(tokens, prompt_length=prompt.shape[0], eos=eos)
    if potential is not None:
        log_potentials = potential(tokens, mask)
        chex.assert_equal_shape([log_potentials, log_weights])
        log_weights = _added(log_weights, finite_logs(log_potentials) - cloud.log_twists)
    log_weights = jnp.maximum(log_weights, LOG_ZERO)
    return Particles(
        tokens=tokens,
        mask=mask,
        log_weights=log_weights,
        log_evidence=log_evidence(log_weights),
        effective_sample_size=effective_sample_size(log_weights),
        num_resamplings=cloud.num_resamplings,
        raw_log_probs=cloud.raw_log_probs,
        num_tokens=cloud.num_tokens,
    )


def weighted_decoding(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    twist: Twist | TwistModel,
    num_samples: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
) -> Samples:
    """Draws every token from p0(a | s) psi(s.a), normalised over a, without weights.

    The law of the documents is `prod_t p0(x_t | s_t) psi(s_t.x_t) / n(s_t)`, where
    `n(s) = sum_a p0(a | s) psi(s.a)`. It is the posterior p0(x) psi(x) / Z only if psi = n at every
    s after the prompt, as for the exact twist. In FUDGE, psi(s) is a classifier's probability that
    a document which begins with s has the wanted attribute.

    Source: Yang, Klein, FUDGE: Controlled Text Generation With Future Discriminators,
    https://arxiv.org/abs/2104.05218.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      twist: see `Twist`; a shift of log psi(s.a) that is the same for all a does not matter.
      num_samples: N.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding, left or right; None = all true.

    Returns:
      The documents, with log-probs under the law that they were drawn from and under p0 itself. If
      psi is zero for every next token (an error under checkify), the token is drawn uniformly.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size is not positive, or `eos` is not a token of the vocabulary.
    """
    start, extend, _ = _extension(
        lm, params, prompt, valid, twist, num_samples, max_length, eos, twisted=True
    )

    def step(rows: _Rows, t: Array) -> tuple[_Rows, Array]:
        drawn = extend(jax.random.fold_in(key, t), rows, t)
        possible = ~rows.alive | has_mass(drawn.log_normaliser)
        checkify.debug_check(
            jnp.all(possible),
            "the twist forbids every next token of sample {row} after {t} tokens",
            row=jnp.argmin(possible),
            t=t,
        )
        scores = jnp.stack([drawn.log_probs, drawn.raw_log_probs])
        return drawn.rows, jnp.where(rows.alive, scores, 0.0)

    rows, scores = jax.lax.scan(step, start, jnp.arange(max_length))
    log_probs, raw_log_probs = jnp.sum(scores, axis=0)
    mask = response_mask(rows.tokens, prompt_length=prompt.shape[0], eos=eos)
    return Samples(rows.tokens, mask, log_probs, raw_log_probs)


def _added(log_weights: Array, gain: Array) -> Array:
    """Returns log weights that have grown; what is zero stays zero."""
    return jnp.where(has_mass(log_weights), log_weights + gain, LOG_ZERO)


def _resampled(
    key: Key,
    cloud: _Cloud,
    resample_below: float | Array,
    take: Callable[[_Rows, Array], _Rows],
) -> _Cloud:
    """Returns the cloud, resampled to equal weights if its effective sample size is small."""
    num_particles = cloud.log_weights.shape[0]
    few = effective_sample_size(cloud.log_weights) < resample_below * num_particles
    ancestors = resample(key, cloud.log_weights, num_samples=num_particles)

    def resampled(cloud: _Cloud) -> _Cloud:
        return cloud._replace(
            rows=take(cloud.rows, ancestors),
            log_twists=cloud.log_twists[ancestors],
            raw_log_probs=cloud.raw_log_probs[ancestors],
            log_weights=jnp.full_like(cloud.log_weights, log_evidence(cloud.log_weights)),
            num_resamplings=cloud.num_resamplings + 1,
        )

    return jax.lax.cond(few, resampled, lambda cloud: cloud, cloud)


def _extension(
    lm: LanguageModel,
    params: Params,
    prompt: Array,
    valid: Array | None,
    twist: Twist | TwistModel,
    num_rows: int,
    max_length: int,
    eos: int | None,
    *,
    twisted: bool,
) -> _Extension:
    """Returns rows with a prompt and room for a response, and how they go on."""
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, 1)
    prompt_length = prompt.shape[0]
    if num_rows < 1 or max_length < 1 or prompt_length < 1:
        raise ValueError(
            "expected at least one document, max_length >= 1 and at least one prompt token (BOS if "
            f"there is nothing else), found {num_rows}, {max_length} and {prompt_length}"
        )
    if valid is not None:
        chex.assert_type(valid, bool)
        chex.assert_equal_shape([prompt, valid])
    row_valid = None if valid is None else valid[None]
    past, token, read, take_past = continuation(
        lm, params, prompt[None], row_valid, num_rows, max_length
    )
    guiding = guide(twist, prompt, valid, num_rows, max_length)
    tokens = jnp.tile(jnp.pad(prompt, (0, max_length)), (num_rows, 1))
    start = _Rows(tokens, token, jnp.ones(num_rows, bool), past, guiding.past)

    def extend(key: Key, rows: _Rows, t: Array) -> _Drawn:
        """Appends a token to every document, and EOS to ended ones."""
        logits, past = read(rows.past, rows.token, t)
        log_twists, guide_past = guiding.step(rows.guide_past, rows.tokens, rows.token, t)
        chex.assert_equal_shape([logits, log_twists])
        chex.assert_type([logits, log_twists], float)
        if eos is not None and not 0 <= eos < logits.shape[1]:
            raise ValueError(f"eos must be a token, 0 <= eos < {logits.shape[1]}, found {eos}")
        checkify.debug_check(~jnp.any(jnp.isnan(logits)), "logits hold a NaN")
        checkify.debug_check(
            ~jnp.any(jnp.isnan(log_twists) | jnp.isposinf(log_twists)),
            "log twists hold a NaN or +inf",
        )
        # A scan carries the weights as default floats, so the model's float type must not leak.
        raw = jax.nn.log_softmax(finite_logs(logits)).astype(float)
        log_twists = finite_logs(log_twists).astype(float)
        log_normaliser = jax.nn.logsumexp(raw + log_twists, axis=1)
        law = raw + log_twists - log_normaliser[:, None] if twisted else raw
        token, alive = jax.random.categorical(key, law).astype(rows.token.dtype), rows.alive
        if eos is not None:
            token = jnp.where(alive, token, eos)
            alive = alive & (token != eos)
        at = lambda table: jnp.take_along_axis(table, token[:, None], axis=1)[:, 0]
        column = token[:, None].astype(rows.tokens.dtype)
        tokens = jax.lax.dynamic_update_slice_in_dim(rows.tokens, column, prompt_length + t, axis=1)
        extended = _Rows(tokens, token, alive, past, guide_past)
        return _Drawn(extended, at(law), at(raw), at(log_twists), log_normaliser)

    def take(rows: _Rows, chosen: Array) -> _Rows:
        return _Rows(
            tokens=rows.tokens[chosen],
            token=rows.token[chosen],
            alive=rows.alive[chosen],
            past=take_past(rows.past, chosen),
            guide_past=guiding.take(rows.guide_past, chosen),
        )

    return _Extension(start, extend, take)
