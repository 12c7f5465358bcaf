"""An episode that the host drives."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter.environments.base import HostEnvironment, Transcript
from shatter.environments.episode import Limits
from shatter.environments.policies import Policy
from shatter.environments.texts import Codec
from shatter.types import Key


class _Token(NamedTuple):
    """One token of a transcript; see `Transcript`."""

    token: int
    is_action: bool
    log_prob: float
    turn: int


def host_play(
    policy: Policy,
    key: Key,
    environment: HostEnvironment,
    limits: Limits,
    codec: Codec | None,
) -> Transcript:
    """Plays one episode.

    Args:
      policy: who writes the actions.
      key: a typed key.
      environment: the environment.
      limits: the limits of the rollout.
      codec: how strings are written in tokens; None = texts are lists of token ids.

    Returns:
      The transcript.

    Raises:
      ValueError: as `host_rollout`.
    """
    limits.check()
    max_turns, max_action_length, max_length, end_of_action = limits
    reset_key, draw_key = jax.random.split(key)
    state, observation = environment.reset(reset_key)
    ids = _read_by(policy, encode(observation, codec, "the first observation"), "at first")
    if not ids or len(ids) + max_action_length > max_length:
        raise ValueError(
            "expected a first observation of at least one token that leaves room for an action of "
            f"{max_action_length} tokens in max_length {max_length}, found {len(ids)} tokens: "
            f"raise max_length to at least {len(ids) + max_action_length}, or change the prompt"
        )
    past, written, done = policy.start(max_length), list[_Token](), False
    rewards, is_invalid = list[float](), list[bool]()
    while True:
        turn = len(rewards)
        for token in ids:
            past = policy.read(past, token, len(written))
            written.append(_Token(token, False, 0.0, turn))
        action: list[int] = []
        while len(action) < max_action_length and action[-1:] != [end_of_action]:
            drawn, log_prob = policy.write(draw_key, past, state, turn, len(action))
            action.append(int(drawn))
            past = policy.read(past, action[-1], len(written))
            written.append(_Token(action[-1], True, float(log_prob), turn))
        said = action if codec is None else codec.decode(action)
        state, observation, reward, done = environment.step(state, said)
        rewards.append(finite_reward(reward, turn))
        is_invalid.append(action[-1] != end_of_action or bool(environment.is_invalid(state)))
        if done or turn + 1 == max_turns:
            break  # nobody reads the answer to the last action
        ids = encode(observation, codec, f"the observation after action {turn}")
        ids = _read_by(policy, ids, f"after action {turn}")
        if len(written) + len(ids) + max_action_length > max_length:
            break
    return _transcript(written, rewards, is_invalid, bool(done), max_length, max_turns)


def encode(text: Any, codec: Codec | None, where: str) -> list[int]:
    """Returns the tokens of a text, and checks that they are the text.

    Args:
      text: a string, or token ids where there is no codec.
      codec: how strings are written in tokens.
      where: what the text is, for messages.

    Returns:
      Token ids.

    Raises:
      ValueError: if the codec has no tokens for the text, or other ones.
    """
    if codec is None:
        return [int(token) for token in text]
    if not isinstance(text, str):
        raise ValueError(f"expected {where} to be a string, because there is a codec, found {text}")
    mend = "make the environment say it in words that the tokenizer has, or widen the tokenizer"
    try:
        ids = [int(token) for token in codec.encode(text)]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"the tokenizer cannot write {where}, {text!r}: {error}; {mend}"
        ) from error
    if codec.decode(ids) != text:
        raise ValueError(
            f"the tokenizer cannot write {where}, {text!r}: its tokens read {codec.decode(ids)!r}; "
            f"{mend}"
        )
    return ids


def _read_by(policy: Policy, ids: list[int], when: str) -> list[int]:
    """Returns the tokens of an observation, which must be in the vocabulary."""
    size = policy.vocab_size
    strange = [token for token in ids if size is not None and not 0 <= token < size]
    if strange:
        raise ValueError(
            f"expected tokens of the model's vocabulary, 0 <= token < {size}, found {strange[0]} "
            f"in what the environment said {when}: write it in the model's tokens"
        )
    return ids


def finite_reward(reward: Any, turn: int) -> float:
    """Returns a reward of the host as a number.

    Args:
      reward: what the environment's step returned.
      turn: the number of the action, for messages.

    Returns:
      The reward.

    Raises:
      ValueError: if it is not one finite number.
    """
    if np.shape(reward) != () or not math.isfinite(float(reward)):
        raise ValueError(
            f"expected one finite number as the reward of action {turn}, found {reward}: correct "
            "the step of the environment"
        )
    return float(reward)


def _transcript(
    written: list[_Token],
    rewards: list[float],
    is_invalid: list[bool],
    done: bool,
    max_length: int,
    max_turns: int,
) -> Transcript:
    rest = max_length - len(written)
    row = lambda values, kind: jnp.asarray([*values, *[kind(0)] * rest], kind)
    unused = [0] * (max_turns - len(rewards))
    return Transcript(
        tokens=row([one.token for one in written], int),
        is_action=row([one.is_action for one in written], bool),
        valid=row([True for _ in written], bool),
        log_probs=row([one.log_prob for one in written], float),
        turns=row([one.turn for one in written], int),
        rewards=jnp.asarray([*rewards, *unused], float),
        is_invalid=jnp.asarray([*is_invalid, *unused], bool),
        num_turns=jnp.asarray(len(rewards)),
        num_invalid=jnp.asarray(sum(is_invalid)),
        done=jnp.asarray(done),
    )
