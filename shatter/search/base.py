"""What every search takes and returns."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.inference import Twist
from shatter.models import LanguageModel
from shatter.numerics import at_least_float32
from shatter.types import Array, Params

Reward = Callable[[Array, Array], Array]
"""`(tokens[N, T], mask[N, T]) -> [N]`, the reward of whole documents; the mask is true on the
response's tokens."""


class Found(NamedTuple):
    """The responses that a search found to one prompt.

    Attributes:
      tokens: int `[N, P + max_length]`, filled with EOS after the EOS of the response.
      mask: bool `[N, P + max_length]`, true on the response's tokens, EOS included.
      rewards: `[N]`, in the unit of the reward; -inf in rows that hold no response, which only
        `beam_search` has, where there are fewer documents than beams.
      log_probs: `[N]`, under the model itself, nats.
      log_weights: `[N]`, nats; of `sequential_monte_carlo`, where the responses with these weights
        represent p0 exp(r / beta) / Z, and 0 of every other search.
      best: int `[]`, the first row with the largest reward.
      num_tokens: int `[]`, the laws of a next token that the search needed. Reading the prompt is
        not counted, nor is what the reward and the twist compute: a `TwistModel` reads as many
        tokens again.
    """

    tokens: Array
    mask: Array
    rewards: Array
    log_probs: Array
    log_weights: Array
    best: Array
    num_tokens: Array


def found(
    reward: Reward,
    tokens: Array,
    mask: Array,
    log_probs: Array,
    num_tokens: Array,
    *,
    log_weights: Array | None = None,
    exists: Array | None = None,
) -> Found:
    """Returns responses with their rewards.

    Args:
      reward: the reward.
      tokens: int `[N, T]`.
      mask: bool `[N, T]`.
      log_probs: `[N]`, nats.
      num_tokens: int `[]`.
      log_weights: `[N]`, nats; None = 0.
      exists: bool `[N]`, false in rows that hold no response; None = all true.

    Returns:
      The responses.

    Raises:
      AssertionError: if the reward is not one number for each document.
    """
    rewards = rewards_of(reward, tokens, mask, exists)
    log_weights = jnp.zeros_like(log_probs) if log_weights is None else log_weights
    return Found(tokens, mask, rewards, log_probs, log_weights, jnp.argmax(rewards), num_tokens)


def rewards_of(reward: Reward, tokens: Array, mask: Array, exists: Array | None = None) -> Array:
    """Returns the rewards of documents, `[N]`, in float32 at least, checked.

    Args:
      reward: the reward.
      tokens: int `[N, T]`.
      mask: bool `[N, T]`.
      exists: bool `[N]`, false in rows that hold no response, whose reward is -inf; None = all
        true.

    Returns:
      The rewards.

    Raises:
      AssertionError: if the reward is not one number for each document.
    """
    rewards = at_least_float32(reward(tokens, mask))
    chex.assert_shape(
        rewards, tokens.shape[:1], custom_message="the reward gives one number for every document"
    )
    if exists is not None:
        rewards = jnp.where(exists, rewards, -jnp.inf)
    checkify.debug_check(
        ~jnp.any(jnp.isnan(rewards)),
        "the reward of response {row} is NaN",
        row=jnp.argmax(jnp.isnan(rewards)),
    )
    return rewards


def num_rows(budget: int, max_length: int, laws_per_token: int = 1) -> int:
    """Returns how many responses, or simulations a token, a budget pays for.

    Args:
      budget: laws of a next token.
      max_length: largest number of response tokens.
      laws_per_token: the fewest laws that every token needs.

    Returns:
      `budget // max_length`.

    Raises:
      ValueError: if a size is not positive, or the budget is below one response.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, found {max_length}")
    if budget < laws_per_token * max_length:
        raise ValueError(
            f"a budget of {budget} tokens is below one response: with max_length {max_length} it "
            f"must be at least {laws_per_token * max_length}"
        )
    return budget // max_length


def no_twist(lm: LanguageModel, params: Params) -> Twist:
    """Returns the twist that knows nothing: log psi = 0 of every document.

    Args:
      lm: the language model, for the size of its vocabulary.
      params: its parameters.

    Returns:
      The twist.
    """
    vocab_size = jax.eval_shape(lm.apply, params, jnp.zeros((1, 1), int)).shape[-1]
    return lambda tokens, length: jnp.zeros((tokens.shape[0], vocab_size))
