"""What an environment is, for programs and for the host, and what a rollout returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.environments.texts import Tokens
from shatter.types import Array, Key

State = Any
"""What an environment remembers between turns; for `Environment` a pytree of arrays."""


def _never(state: State) -> Any:
    del state
    return jnp.zeros((), bool)


class Environment(NamedTuple):
    """A text environment of pure functions, which is rolled out inside one program.

    An action is what the model wrote, its end token included. An action without an end token was
    cut because it was too long. The environment decides what an ill-formed action leads to; those
    of this package answer with an error, charge the price of a step, and go on.

    Attributes:
      reset: `(key) -> (state, observation)`; the first observation, `Tokens` with at least one
        token, is the prompt.
      step: `(state, action) -> (state, observation, reward[], done[])`, where the action is
        `Tokens`. The state has the same structure, shapes and types as that of `reset`; an
        observation may have room for another number of tokens.
      is_invalid: `(state) -> bool[]`, whether the last action was ill-formed. By default never.
    """

    reset: Callable[[Key], tuple[State, Tokens]]
    step: Callable[[State, Tokens], tuple[State, Tokens, Array, Array]]
    is_invalid: Callable[[State], Array] = _never


class HostEnvironment(NamedTuple):
    """An environment that Python runs, with the signatures of `Environment` on lists or strings.

    A text (an observation or an action) is a list of token ids, or a string where the rollout is
    given a `Codec`.

    Attributes:
      reset: `(key) -> (state, observation)`, with a typed key, so that equal keys give equal
        episodes.
      step: `(state, action) -> (state, observation, reward, done)`, with a float and a bool.
      is_invalid: `(state) -> bool`, whether the last action was ill-formed. By default never.
    """

    reset: Callable[[Key], tuple[State, Any]]
    step: Callable[[State, Any], tuple[State, Any, float, bool]]
    is_invalid: Callable[[State], Any] = _never


class Transcript(NamedTuple):
    """One episode as a document, with who wrote each token.

    The document begins with the first observation and ends with the last action. What the
    environment says to the last action is not in it, because nobody reads it.

    Attributes:
      tokens: int `[T]`, the document, then zeros.
      is_action: bool `[T]`, true on the tokens that the policy wrote, the end tokens of actions
        included. A loss has this mask, so that what the environment says is never trained on.
      valid: bool `[T]`, true on the tokens of the document.
      log_probs: `[T]`, of the policy's tokens under the law that they were drawn from, nats; 0 on
        all other tokens, and for a scripted policy.
      turns: int `[T]`, the number of the action that a token belongs to, or that it precedes,
        from 0; 0 after the end.
      rewards: `[turns]`, the reward of every action; 0 after the end.
      is_invalid: bool `[turns]`, true on actions that were cut, or that the environment calls
        ill-formed.
      num_turns: int `[]`, the number of actions.
      num_invalid: int `[]`, the number of invalid actions.
      done: bool `[]`, whether the environment ended the episode; otherwise it was cut short by the
        largest number of turns or tokens.
    """

    tokens: Array
    is_action: Array
    valid: Array
    log_probs: Array
    turns: Array
    rewards: Array
    is_invalid: Array
    num_turns: Array
    num_invalid: Array
    done: Array


def require(condition: Array, message: str, **values: Array) -> None:
    """Raises a ValueError if a condition is false; a traced one is left to checkify.

    Args:
      condition: bool `[]`.
      message: the text, with the names of the values in braces.
      **values: what the message shows.

    Raises:
      ValueError: if the condition is known and false.
    """
    if isinstance(condition, jax.core.Tracer):
        checkify.debug_check(condition, message, **values)
    elif not condition:
        raise ValueError(message.format(**values))
