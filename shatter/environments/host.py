"""Rollouts driven from the host, in environments that are no functions of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from shatter.environments.base import Environment, HostEnvironment, State, Transcript
from shatter.environments.episode import Limits
from shatter.environments.host_episode import encode, host_play
from shatter.environments.policies import Policy, model_policy, sampling_law
from shatter.environments.texts import Codec, Tokens, as_tokens
from shatter.models import LanguageModel
from shatter.types import Array, Key, Params


def host_rollout(
    lm: LanguageModel,
    params: Params,
    key: Key,
    environment: HostEnvironment,
    *,
    max_turns: int,
    max_action_length: int,
    max_length: int,
    end_of_action: int,
    codec: Codec | None = None,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
) -> Transcript:
    """Draws one episode as `rollout` does, by its rules, in an environment that Python runs.

    With equal keys, both drivers draw the same tokens in the same environment. Nothing is jitted
    here: give a model with jitted functions, of which each is compiled once,
    `lm._replace(apply=jax.jit(lm.apply), decode=jax.jit(lm.decode))`.

    Args:
      lm: the language model.
      params: its parameters.
      key: a typed key.
      environment: the environment.
      max_turns: the largest number of actions.
      max_action_length: the largest number of tokens of an action, its end token included.
      max_length: T, the largest number of tokens of the transcript.
      end_of_action: the token that ends an action.
      codec: how the environment's strings are written in tokens; None = it speaks in lists of
        token ids.
      temperature: divides the logits of every token, > 0.
      top_k: only the k likeliest tokens are drawn; None = all.
      top_p: of these, only the smallest set of tokens with this mass; None = all.

    Returns:
      The transcript, arrays of the same shapes as those of `rollout`.

    Raises:
      ValueError: if a limit is not positive, if the first observation is empty or leaves no room
        for an action in `max_length`, if the codec cannot write an observation, if a reward is not
        a finite number, or as `rollout`.
    """
    law = sampling_law(temperature, top_k, top_p)
    policy = model_policy(lm, params, law, end_of_action)
    limits = Limits(max_turns, max_action_length, max_length, end_of_action)
    return host_play(policy, key, environment, limits, codec)


def host_scripted_rollout(
    expert: Callable[[Key, State], Any],
    key: Key,
    environment: HostEnvironment,
    *,
    max_turns: int,
    max_action_length: int,
    max_length: int,
    end_of_action: int,
    codec: Codec | None = None,
) -> Transcript:
    """Plays one episode by a script, by the rules of `host_rollout`.

    Args:
      expert: `(key, state) -> action`, a list of token ids, or a string where there is a codec. It
        may read all of the environment's state, and a missing end token is added.
      key: a typed key.
      environment: the environment.
      max_turns: the largest number of actions.
      max_action_length: the largest number of tokens of an action, its end token included.
      max_length: T, the largest number of tokens of the transcript.
      end_of_action: the token that ends an action.
      codec: how strings are written in tokens; None = all texts are lists of token ids.

    Returns:
      The transcript, with log-probs of 0.

    Raises:
      ValueError: as `host_rollout`, and if the codec cannot write an action of the script.
    """
    actions: dict[int, list[int]] = {}  # by turn: the script is asked once for all its tokens

    def write(key: Key, past: Any, state: State, turn: int, count: int) -> tuple[int, float]:
        del past
        if turn not in actions:
            action = expert(jax.random.fold_in(key, turn), state)
            actions[turn] = encode(action, codec, f"action {turn} of the script")
        ids = actions[turn]
        return ids[count] if count < len(ids) else end_of_action, 0.0

    policy = Policy(lambda max_length: (), lambda past, token, t: past, write)
    limits = Limits(max_turns, max_action_length, max_length, end_of_action)
    return host_play(policy, key, environment, limits, codec)


def on_host(environment: Environment, *, max_action_length: int) -> HostEnvironment:
    """Makes an environment of pure functions one that the host drives.

    Args:
      environment: the environment; jit its functions first where speed matters.
      max_action_length: the room of the actions that its `step` is given.

    Returns:
      An environment on lists of token ids.
    """

    def reset(key: Key) -> tuple[State, list[int]]:
        state, observation = environment.reset(key)
        return state, _as_list(observation)

    def step(state: State, action: Sequence[int]) -> tuple[State, list[int], float, bool]:
        text = as_tokens(action, size=max_action_length)
        state, observation, reward, done = environment.step(state, text)
        return state, _as_list(observation), float(reward), bool(done)

    return HostEnvironment(reset, step, environment.is_invalid)


def _as_list(text: Tokens) -> list[int]:
    return [int(token) for token in text.tokens[: int(text.length)]]
