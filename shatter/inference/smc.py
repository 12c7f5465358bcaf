"""Sequential Monte Carlo with twists, and decoding by a twist without weights."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents import Samples, response_mask
from shatter.inference.importance import (
    effective_sample_size,
    has_mass,
    log_evidence,
    resample,
)
from shatter.inference.twists import Twist
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
    """

    tokens: Array
    mask: Array
    log_weights: Array
    log_evidence: Array
    effective_sample_size: Array
    num_resamplings: Array


class _Cloud(NamedTuple):
    """The documents so far, which of them go on, their log psi and their log weights."""

    tokens: Array
    alive: Array
    log_twists: Array
    log_weights: Array
    num_resamplings: Array


class _Drawn(NamedTuple):
    """Documents with one more token, and the log-probs and twists of that token, `[N]` each."""

    tokens: Array
    alive: Array
    log_probs: Array
    raw_log_probs: Array
    log_twists: Array
    log_normaliser: Array


def smc(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    twist: Twist,
    num_particles: int,
    max_length: int,
    eos: int | None = None,
    twisted_proposal: bool = True,
    resample_below: float | Array = 0.5,
) -> Particles:
    """Draws weighted samples of p0(x) psi(x) / Z, guided by the twist token by token.

    With the twisted proposal, a token is drawn from a ~ p0(a | s) psi(s.a) / n(s), where
    `n(s) = sum_a p0(a | s) psi(s.a)`, and the log weight grows by `log n(s) - log psi(s)`.
    Otherwise a ~ p0 and it grows by `log psi(s.a) - log psi(s)`. psi of the prompt is 1. Z_hat is
    unbiased for any twist before the end of documents; a better twist makes the weights vary less.
    Before each token the particles are resampled systematically if their effective sample size is
    small. Each token needs a full forward pass.

    Source: Zhao, Brekelmans, Makhzani, Grosse, Probabilistic Inference in Language Models via
    Twisted Sequential Monte Carlo, https://arxiv.org/abs/2404.17546.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      twist: see `Twist`; at a document's end it gives the log potential r / beta itself.
      num_particles: N.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      twisted_proposal: whether tokens are drawn with the twist or from p0 alone.
      resample_below: resample if the effective sample size is below this share of N; 0 = never,
        1 = before every token, unless all weights are equal.

    Returns:
      The particles. If all weights are zero, `log_evidence` is LOG_ZERO.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size is not positive, or `eos` is not a token of the vocabulary.
    """
    tokens, alive = _start(prompt, num_particles, max_length)
    extend = _extending(lm, params, twist, eos=eos, twisted=twisted_proposal)

    def step(cloud: _Cloud, t: Array) -> tuple[_Cloud, None]:
        resample_key, draw_key = jax.random.split(jax.random.fold_in(key, t))
        cloud = _resampled(resample_key, cloud, resample_below)
        drawn = extend(draw_key, cloud.tokens, cloud.alive, prompt.shape[0] + t)
        after = drawn.log_normaliser if twisted_proposal else drawn.log_twists
        gain = jnp.where(cloud.alive, after - cloud.log_twists, 0.0)
        log_weights = jnp.where(has_mass(cloud.log_weights), cloud.log_weights + gain, LOG_ZERO)
        return cloud._replace(
            tokens=drawn.tokens,
            alive=drawn.alive,
            log_twists=drawn.log_twists,
            log_weights=log_weights,
        ), None

    zeros = jnp.zeros(num_particles)
    start = _Cloud(tokens, alive, zeros, zeros, jnp.zeros((), int))
    cloud, _ = jax.lax.scan(step, start, jnp.arange(max_length))
    log_weights = jnp.maximum(cloud.log_weights, LOG_ZERO)
    return Particles(
        tokens=cloud.tokens,
        mask=response_mask(cloud.tokens, prompt_length=prompt.shape[0], eos=eos),
        log_weights=log_weights,
        log_evidence=log_evidence(log_weights),
        effective_sample_size=effective_sample_size(log_weights),
        num_resamplings=cloud.num_resamplings,
    )


def weighted_decoding(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    twist: Twist,
    num_samples: int,
    max_length: int,
    eos: int | None = None,
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

    Returns:
      The documents, with log-probs under the law that they were drawn from and under p0 itself. If
      psi is zero for every next token (an error under checkify), the token is drawn uniformly.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a size is not positive, or `eos` is not a token of the vocabulary.
    """
    tokens, alive = _start(prompt, num_samples, max_length)
    extend = _extending(lm, params, twist, eos=eos, twisted=True)

    def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], Array]:
        tokens, alive = carry
        drawn = extend(jax.random.fold_in(key, t), tokens, alive, prompt.shape[0] + t)
        possible = ~alive | has_mass(drawn.log_normaliser)
        checkify.debug_check(
            jnp.all(possible),
            "the twist forbids every next token of sample {row} after {t} tokens",
            row=jnp.argmin(possible),
            t=t,
        )
        scores = jnp.stack([drawn.log_probs, drawn.raw_log_probs])
        return (drawn.tokens, drawn.alive), jnp.where(alive, scores, 0.0)

    (tokens, _), scores = jax.lax.scan(step, (tokens, alive), jnp.arange(max_length))
    log_probs, raw_log_probs = jnp.sum(scores, axis=0)
    mask = response_mask(tokens, prompt_length=prompt.shape[0], eos=eos)
    return Samples(tokens, mask, log_probs, raw_log_probs)


def _start(prompt: Array, num_documents: int, max_length: int) -> tuple[Array, Array]:
    """Returns rows with the prompt and room for a response, and that all of them go on."""
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, 1)
    if num_documents < 1 or max_length < 1 or prompt.shape[0] < 1:
        raise ValueError(
            "expected at least one document, max_length >= 1 and at least one prompt token (BOS if "
            f"there is nothing else), found {num_documents}, {max_length} and {prompt.shape[0]}"
        )
    row = jnp.pad(prompt, (0, max_length))
    return jnp.tile(row, (num_documents, 1)), jnp.ones(num_documents, bool)


def _resampled(key: Key, cloud: _Cloud, resample_below: float | Array) -> _Cloud:
    """Returns the cloud, resampled to equal weights if its effective sample size is small."""
    num_particles = cloud.log_weights.shape[0]
    size = effective_sample_size(cloud.log_weights)
    few = size < resample_below * num_particles
    chosen = resample(key, cloud.log_weights, num_samples=num_particles)
    ancestors = jnp.where(few, chosen, jnp.arange(num_particles))
    return _Cloud(
        tokens=cloud.tokens[ancestors],
        alive=cloud.alive[ancestors],
        log_twists=cloud.log_twists[ancestors],
        log_weights=jnp.where(few, log_evidence(cloud.log_weights), cloud.log_weights),
        num_resamplings=cloud.num_resamplings + few,
    )


def _extending(
    lm: LanguageModel, params: Params, twist: Twist, *, eos: int | None, twisted: bool
) -> Callable[[Key, Array, Array, Array], _Drawn]:
    """Returns the function that appends a token to every document, and EOS to ended ones."""

    def extend(key: Key, tokens: Array, alive: Array, length: Array) -> _Drawn:
        # A causal model ignores the tokens after the document so far. No token follows the last
        # one, so its logits are not needed.
        logits = lm.apply(params, tokens[:, :-1])
        logits = jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False)
        log_twists = twist(tokens, length)
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
        token = jax.random.categorical(key, law)
        if eos is not None:
            token = jnp.where(alive, token, eos)
            alive = alive & (token != eos)
        at = lambda table: jnp.take_along_axis(table, token[:, None], axis=1)[:, 0]
        column = token[:, None].astype(tokens.dtype)
        return _Drawn(
            tokens=jax.lax.dynamic_update_slice_in_dim(tokens, column, length, axis=1),
            alive=alive,
            log_probs=at(law),
            raw_log_probs=at(raw),
            log_twists=at(log_twists),
            log_normaliser=log_normaliser,
        )

    return extend
