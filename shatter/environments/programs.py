"""Environments that Python runs, inside a program, so that many episodes are one call."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from shatter.environments.base import Environment, HostEnvironment, State
from shatter.environments.host_episode import encode, finite_reward
from shatter.environments.texts import Codec, Tokens
from shatter.types import Array, Key

_REMEMBERED = 1 << 16  # turns that need not be played again


class ProgramState(NamedTuple):
    """What a program knows of an environment on the host: what has been done in it.

    Attributes:
      key: the key of the reset.
      actions: int `[turns, A]`, every action so far, padded with zeros.
      lengths: int `[turns]`, their numbers of tokens.
      turn: int `[]`, the number of actions so far.
      is_invalid: bool `[]`, whether the last action was ill-formed.
    """

    key: Key
    actions: Array
    lengths: Array
    turn: Array
    is_invalid: Array


class _Turn(NamedTuple):
    """What the host says to an action, or at first."""

    state: State
    ids: list[int]
    reward: float
    done: bool
    is_invalid: bool


def in_program(
    environment: HostEnvironment,
    *,
    max_turns: int,
    max_action_length: int,
    max_observation_length: int,
    end_of_action: int,
    codec: Codec | None = None,
) -> Environment:
    """Makes an environment that Python runs one for programs, under `jax.jit` and `jax.vmap`.

    The state of a program is arrays, so it holds what has been done, and a callback plays this
    again. What was played lately is remembered, so that a turn of an episode is one step of the
    environment. All vmapped episodes are one callback a token, which asks the environment about
    whole actions alone.

    The environment must be pure: equal keys and actions give equal answers. It must compute with
    Python and NumPy alone, as `library` does: jax itself, inside a callback, may wait forever for
    its turn behind other computations that wait for the program that waits for the callback.
    With equal keys, `rollout` draws here what `host_rollout` draws in the environment itself.

    Args:
      environment: the environment.
      max_turns: the largest number of actions, as in `rollout`.
      max_action_length: A, the largest number of tokens of an action, as in `rollout`.
      max_observation_length: the largest number of tokens that the environment says at once.
      end_of_action: the token that ends an action, as in `rollout`.
      codec: how the environment's strings are written in tokens; None = it speaks in lists of
        token ids.

    Returns:
      An environment. Its functions raise, with the turn and the text, if the codec cannot write
      what is said, if that is longer than its room, if a reward is not a finite number, and if the
      environment itself raises; jit gives that as a `jax.errors.JaxRuntimeError`.

    Raises:
      ValueError: if a limit is not positive.
    """
    if min(max_turns, max_action_length, max_observation_length) < 1:
        raise ValueError(
            "in_program expects positive limits, found max_turns "
            f"{max_turns}, max_action_length {max_action_length} and max_observation_length "
            f"{max_observation_length}"
        )

    room = (max_turns, max_action_length, max_observation_length)
    ask = functools.partial(_ask, _remembered(environment, codec, max_turns), codec, room)

    def reset(key: Key) -> tuple[ProgramState, Tokens]:
        zero, no = jnp.zeros((), int), jnp.zeros((), bool)
        actions = jnp.zeros((max_turns, max_action_length), int)
        state = ProgramState(key, actions, jnp.zeros(max_turns, int), zero, no)
        state, prompt, _, _ = ask(state, ~no)
        return state, prompt

    def step(state: ProgramState, action: Tokens) -> tuple[ProgramState, Tokens, Array, Array]:
        chex.assert_shape(action.tokens, (max_action_length,))
        written = jnp.where(jnp.arange(max_action_length) < action.length, action.tokens, 0)
        state = state._replace(
            actions=state.actions.at[state.turn].set(written),
            lengths=state.lengths.at[state.turn].set(action.length),
            turn=state.turn + 1,
        )
        # Vmapped rollouts ask in every lane and drop the answers to actions that go on.
        last = action.tokens[jnp.maximum(action.length - 1, 0)]
        is_whole = (last == end_of_action) | (action.length == max_action_length)
        return ask(state, is_whole & (action.length > 0) & (state.turn <= max_turns))

    return Environment(reset, step, lambda state: state.is_invalid)


def _ask(
    after: Callable[..., _Turn],
    codec: Codec | None,
    room: tuple[int, int, int],
    state: ProgramState,
    asked: Array,
) -> tuple[ProgramState, Tokens, Array, Array]:
    """Returns what the host says to the last action, or zeros where it is not asked."""
    kinds = [jnp.zeros(room[2], int), 0, 0.0, False, False]
    shapes = tuple(jax.ShapeDtypeStruct(k.shape, k.dtype) for k in map(jnp.asarray, kinds))
    impl = str(jax.random.key_impl(state.key))
    call = functools.partial(_answers, functools.partial(after, impl), codec, room)
    given = (asked, jax.random.key_data(state.key), state.actions, state.lengths, state.turn)
    said, size, reward, done, is_invalid = jax.pure_callback(
        call, shapes, *given, vmap_method="broadcast_all"
    )
    return state._replace(is_invalid=is_invalid), Tokens(said, size), reward, done


def _remembered(
    environment: HostEnvironment, codec: Codec | None, max_turns: int
) -> Callable[..., _Turn]:
    """Returns `(impl, seed, actions) -> turn`, the answer to the last of the actions."""

    @functools.lru_cache(maxsize=_REMEMBERED)
    def after(impl: str, seed: tuple[int, ...], actions: tuple[tuple[int, ...], ...]) -> _Turn:
        if not actions:
            data = np.asarray(seed, np.uint32)
            key = jax.random.wrap_key_data(data, impl=impl)  # type: ignore[arg-type]
            state, said = _call("begin an episode", environment.reset, key)
            return _Turn(state, encode(said, codec, "the first observation"), 0.0, False, False)
        turn = len(actions) - 1
        state = after(impl, seed, actions[:-1]).state
        text = list(actions[-1]) if codec is None else _read(codec, actions[-1], turn)
        about = f"action {turn}, {text!r}"
        state, said, reward, done = _call(f"answer {about}", environment.step, state, text)
        is_over = done or len(actions) == max_turns  # nobody reads what is said then
        ids = [] if is_over else encode(said, codec, f"the observation after action {turn}")
        is_invalid = bool(_call(f"judge {about}", environment.is_invalid, state))
        return _Turn(state, ids, finite_reward(reward, turn), bool(done), is_invalid)

    return after


def _answers(
    after: Callable[..., _Turn],
    codec: Codec | None,
    room: tuple[int, int, int],
    asked: Any,
    seeds: Any,
    actions: Any,
    lengths: Any,
    turns: Any,
) -> tuple[np.ndarray, ...]:
    """Returns what the host says in every lane that is asked, and zeros in the others."""
    max_turns, max_action_length, most = room
    lanes = np.shape(asked)
    asked, turns = np.asarray(asked).reshape(-1), np.asarray(turns).reshape(-1)
    seeds = np.asarray(seeds).reshape(asked.size, -1)
    actions = np.asarray(actions).reshape(asked.size, max_turns, max_action_length)
    lengths = np.asarray(lengths).reshape(asked.size, max_turns)
    said, size = np.zeros((asked.size, most), int), np.zeros(asked.size, int)
    reward, (done, invalid) = np.zeros(asked.size), np.zeros((2, asked.size), bool)
    for i in np.flatnonzero(asked):
        taken = (actions[i, turn, : lengths[i, turn]].tolist() for turn in range(turns[i]))
        found = after(tuple(seeds[i].tolist()), tuple(map(tuple, taken)))
        size[i] = len(found.ids)
        if size[i] > most:
            where = f"after action {turns[i] - 1}" if turns[i] else "at first"
            text = found.ids if codec is None else repr(codec.decode(found.ids))
            raise ValueError(
                f"expected at most {most} tokens from the environment, found {size[i]} {where}, "
                f"{text}: raise max_observation_length"
            )
        said[i, : size[i]] = found.ids
        reward[i], done[i], invalid[i] = found.reward, found.done, found.is_invalid
    narrow = lambda leaf: leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
    leaves = map(narrow, (said, size, reward, done, invalid))
    return tuple(leaf.reshape((*lanes, *leaf.shape[1:])) for leaf in leaves)


def _read(codec: Codec, action: tuple[int, ...], turn: int) -> str:
    try:
        return codec.decode(action)
    except Exception as error:
        raise ValueError(
            f"the codec cannot read action {turn}, {list(action)}: {type(error).__name__}: "
            f"{error}; give the model the vocabulary of the codec"
        ) from error


def _call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of the environment; an error says what it was to do."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(
            f"the environment cannot {what}: {type(error).__name__}: {error}"
        ) from error
