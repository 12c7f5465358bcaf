"""Searches that draw responses side by side: best of n, sequential Monte Carlo, guided decoding."""

from typing import Any

import jax.numpy as jnp

from shatter import documents, inference
from shatter.inference import Twist, TwistModel
from shatter.models import LanguageModel
from shatter.numerics import assert_positive
from shatter.search.base import Found, Reward, found, no_twist, num_rows, rewards_of
from shatter.types import Array, Key, Params


def best_of_n(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    reward: Reward,
    budget: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
    **sampling: Any,
) -> Found:
    """Draws `n = budget // max_length` responses; the best of them is the result.

    The law of the best is `p(x) = F(r)^n - F_-(r)^n` over documents sorted by reward, F the
    distribution function of p0 and F_- the same below r, where no two rewards are equal. Its
    KL from p0 is at most log n - (n - 1) / n, whatever the reward. With a temperature or filters
    all this holds of the law that is drawn from, in the place of p0.

    Source: Stiennon et al., Learning to summarize from human feedback, appendix G.3,
    https://arxiv.org/abs/2009.01325.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      reward: see `Reward`.
      budget: largest number of laws of a next token.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding; None = all true.
      sampling: temperature and filters of `shatter.documents.sample`.

    Returns:
      The n responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if the budget is below one response, or the sampler refuses an argument.
    """
    drawn = documents.sample(
        lm,
        params,
        key,
        prompt,
        num_samples=num_rows(budget, max_length),
        max_length=max_length,
        eos=eos,
        valid=valid,
        **sampling,
    )
    return found(reward, drawn.tokens, drawn.mask, drawn.raw_log_probs, jnp.sum(drawn.mask))


def value_guided(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    reward: Reward,
    twist: Twist | TwistModel,
    budget: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
) -> Found:
    """Draws `budget // max_length` responses, each token by the model's law times the twist.

    `a ~ p0(a | s) psi(s.a) / n(s)`. With the exact twist, psi(s) = E_p0[exp(r / beta) | s], the
    responses are samples of the posterior p0 exp(r / beta) / Z. Nothing corrects another twist:
    that is what `sequential_monte_carlo` adds.

    Source: Yang, Klein, FUDGE: Controlled Text Generation With Future Discriminators,
    https://arxiv.org/abs/2104.05218.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      reward: see `Reward`; it is computed of the responses and guides nothing.
      twist: log psi(s.a) of every next token, nats: the value in units of beta.
      budget: largest number of laws of a next token.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding; None = all true.

    Returns:
      The responses.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if the budget is below one response.
    """
    drawn = inference.weighted_decoding(
        lm,
        params,
        key,
        prompt,
        twist=twist,
        num_samples=num_rows(budget, max_length),
        max_length=max_length,
        eos=eos,
        valid=valid,
    )
    return found(reward, drawn.tokens, drawn.mask, drawn.raw_log_probs, jnp.sum(drawn.mask))


def sequential_monte_carlo(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    reward: Reward,
    beta: float | Array,
    twist: Twist | TwistModel | None = None,
    budget: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
    resample_below: float | Array = 0.5,
) -> Found:
    """Draws `budget // max_length` weighted responses of the posterior p0 exp(r / beta) / Z.

    Tokens are drawn with the twist, responses are resampled where their weights differ much, and
    the true reward has the last word: the estimate of Z from `log_weights`
    (`shatter.inference.log_evidence`) is unbiased for any twist.

    Source: Zhao, Brekelmans, Makhzani, Grosse, Probabilistic Inference in Language Models via
    Twisted Sequential Monte Carlo, https://arxiv.org/abs/2404.17546.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      reward: see `Reward`.
      beta: KL coefficient, > 0.
      twist: log psi(s.a) of every next token, nats: the value in units of beta. None = 0, where
        only the reward at the end makes weights, as in importance sampling.
      budget: largest number of laws of a next token.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding; None = all true.
      resample_below: see `shatter.inference.smc`.

    Returns:
      The responses and their weights.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if the budget is below one response or beta is not above 0.
    """
    assert_positive(beta=beta)
    particles = inference.smc(
        lm,
        params,
        key,
        prompt,
        twist=no_twist(lm, params) if twist is None else twist,
        num_particles=num_rows(budget, max_length),
        max_length=max_length,
        eos=eos,
        valid=valid,
        potential=lambda tokens, mask: rewards_of(reward, tokens, mask) / beta,
        resample_below=resample_below,
    )
    tokens, mask, log_weights, *_, log_probs, num_tokens = particles
    return found(reward, tokens, mask, log_probs, num_tokens, log_weights=log_weights)
