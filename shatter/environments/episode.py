"""An episode inside a program: one scan over the tokens of a transcript."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents.continuation import any_of_all_lanes
from shatter.environments.base import Environment, State, Transcript, require
from shatter.environments.policies import Policy
from shatter.environments.texts import Tokens, pad
from shatter.types import Array, Key


class Limits(NamedTuple):
    """The limits of a rollout and the token that ends an action; see `rollout`."""

    max_turns: int
    max_action_length: int
    max_length: int
    end_of_action: int

    def check(self) -> None:
        """Raises a ValueError if a limit is not positive."""
        if min(self.max_turns, self.max_action_length, self.max_length) < 1:
            raise ValueError(
                "a rollout expects max_turns >= 1, max_action_length >= 1 and max_length >= 1, "
                f"found {self.max_turns}, {self.max_action_length} and {self.max_length}"
            )


class _Episode(NamedTuple):
    """An episode between two tokens: what is still to be read, and the action so far."""

    past: Any
    state: State
    observation: Tokens
    num_read: Array
    action: Tokens
    turn: Array
    alive: Array
    done: Array
    rewards: Array
    is_invalid: Array


class _Written(NamedTuple):
    """What one step adds to the transcript."""

    token: Array
    is_action: Array
    valid: Array
    log_prob: Array
    turn: Array


def play(policy: Policy, key: Key, environment: Environment, limits: Limits) -> Transcript:
    """Plays one episode.

    Args:
      policy: who writes the actions.
      key: a typed key.
      environment: the environment.
      limits: the limits of the rollout.

    Returns:
      The transcript.

    Raises:
      ValueError: as `rollout`.
    """
    limits.check()
    reset_key, draw_key = jax.random.split(key)
    start = _start(policy, *environment.reset(reset_key), environment, limits)

    def step(episode: _Episode, t: Array) -> tuple[_Episode, _Written]:
        return _one_token(policy, draw_key, environment, limits, episode, t)

    def idle(episode: _Episode, t: Array) -> tuple[_Episode, _Written]:
        shapes = jax.eval_shape(step, episode, t)[1]
        return episode, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step_if_any(episode: _Episode, t: Array) -> tuple[_Episode, _Written]:
        return jax.lax.cond(any_of_all_lanes(episode.alive), step, idle, episode, t)

    episode, written = jax.lax.scan(step_if_any, start, jnp.arange(limits.max_length))
    return Transcript(
        tokens=written.token,
        is_action=written.is_action,
        valid=written.valid,
        log_probs=written.log_prob,
        turns=written.turn,
        rewards=episode.rewards,
        is_invalid=episode.is_invalid,
        num_turns=episode.turn,
        num_invalid=jnp.sum(episode.is_invalid),
        done=episode.done,
    )


def _start(
    policy: Policy, state: State, prompt: Tokens, environment: Environment, limits: Limits
) -> _Episode:
    """Checks what the environment returns and makes the first episode."""
    max_turns, max_action_length, max_length, _ = limits
    action = Tokens(jnp.zeros(max_action_length, int), jnp.zeros((), int))
    later = _check_step(environment, state, action)
    longest = prompt.tokens.shape[0]
    prompt = pad(prompt, max(longest, later.tokens.shape[0]))
    known = None if isinstance(prompt.length, jax.core.Tracer) else int(prompt.length)
    needed = (longest if known is None else known) + max_action_length
    if needed > max_length:
        raise ValueError(
            f"the first observation has up to {needed - max_action_length} tokens and an action up "
            f"to {max_action_length}, which leaves no room in max_length {max_length}: expected at "
            f"least {needed}, so raise max_length or shorten the prompt"
        )
    require(
        (prompt.length >= 1) & (prompt.length <= longest),
        "the first observation must have at least one token and at most its room, found {length}",
        length=prompt.length,
    )
    zero, no = jnp.zeros((), int), jnp.zeros((), bool)
    return _Episode(
        past=policy.start(max_length),
        state=state,
        observation=prompt,
        num_read=zero,
        action=action,
        turn=zero,
        alive=~no,
        done=no,
        rewards=jnp.zeros(max_turns),
        is_invalid=jnp.zeros(max_turns, bool),
    )


def _check_step(environment: Environment, state: State, action: Tokens) -> Tokens:
    """Raises a ValueError if shapes or types of a step are wrong; returns its observation's."""
    after, observation, reward, done = jax.eval_shape(environment.step, state, action)
    invalid = jax.eval_shape(environment.is_invalid, state)
    form = lambda tree: jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
    if form(after) != form(jax.eval_shape(lambda: state)):
        raise ValueError(
            "environment.step must return a state of the same structure, shapes and types as that "
            f"of reset, expected {form(jax.eval_shape(lambda: state))}, found {form(after)}"
        )
    found = {"reward": reward, "done": done, "is_invalid": invalid}
    for name, leaf in found.items():
        if leaf.shape or (name != "reward" and leaf.dtype != bool):
            kind = "number" if name == "reward" else "bool"
            raise ValueError(
                f"expected one {kind} of shape [] as {name} of a step of the environment, found "
                f"{leaf.dtype}{list(leaf.shape)}"
            )
    return observation


def _one_token(
    policy: Policy,
    key: Key,
    environment: Environment,
    limits: Limits,
    episode: _Episode,
    t: Array,
) -> tuple[_Episode, _Written]:
    """Reads one token of the observation, or writes one of the action and steps at its end."""
    observation, action, turn = episode.observation, episode.action, episode.turn
    reads = episode.num_read < observation.length
    drawn, log_prob = policy.write(key, episode.past, episode.state, turn, action.length)
    place = jnp.minimum(episode.num_read, observation.tokens.shape[0] - 1)
    token = jnp.where(reads, observation.tokens[place], drawn)
    if policy.vocab_size is not None:
        checkify.debug_check(
            ~episode.alive | ((token >= 0) & (token < policy.vocab_size)),
            f"the environment said token {{token}} before action {{turn}}, expected 0 <= token < "
            f"{policy.vocab_size}",
            token=token,
            turn=turn,
        )
    writes = episode.alive & ~reads
    tokens = action.tokens.at[action.length].set(jnp.where(writes, token, 0), mode="drop")
    episode = episode._replace(
        past=policy.read(episode.past, token, t),
        num_read=episode.num_read + reads,
        action=Tokens(jnp.where(writes, tokens, action.tokens), action.length + writes),
    )
    full = episode.action.length == limits.max_action_length
    ends = writes & ((token == limits.end_of_action) | full)
    keep = lambda episode: episode
    answer = lambda episode: _answered(environment, limits, episode, token, t)
    # Where lanes are vmapped, the inner cond asks the environment in every lane: so only if needed.
    answer_ends = lambda episode: jax.lax.cond(ends, answer, keep, episode)
    after = jax.lax.cond(any_of_all_lanes(ends), answer_ends, keep, episode._replace(past=()))
    fill = lambda value, where: jnp.where(where, value, jnp.zeros_like(value))
    return after._replace(past=episode.past), _Written(
        token=fill(token, episode.alive),
        is_action=writes,
        valid=episode.alive,
        log_prob=fill(log_prob, writes),
        turn=fill(turn, episode.alive),
    )


def _answered(
    environment: Environment, limits: Limits, episode: _Episode, token: Array, t: Array
) -> _Episode:
    """Returns the episode after the environment's answer to a whole action."""
    turn, action = episode.turn, episode.action
    state, observation, reward, done = environment.step(episode.state, action)
    reward, done = jnp.asarray(reward), jnp.asarray(done)
    checkify.debug_check(
        (observation.length >= 0) & (observation.length <= observation.tokens.shape[0]),
        f"the observation after action {{turn}} must have 0 to {observation.tokens.shape[0]} "
        "tokens, found {length}",
        turn=turn,
        length=observation.length,
    )
    observation = pad(observation, episode.observation.tokens.shape[0])
    checkify.debug_check(
        jnp.isfinite(reward), "the reward of action {turn} is {reward}", turn=turn, reward=reward
    )
    room = limits.max_length - (t + 1)
    fits = observation.length + limits.max_action_length <= room
    invalid = (token != limits.end_of_action) | environment.is_invalid(state)
    return episode._replace(
        state=state,
        observation=observation,
        num_read=jnp.zeros_like(episode.num_read),
        action=Tokens(jnp.zeros_like(action.tokens), jnp.zeros_like(action.length)),
        turn=turn + 1,
        alive=~done & (turn + 1 < limits.max_turns) & fits,
        done=done,
        rewards=episode.rewards.at[turn].set(reward.astype(episode.rewards.dtype)),
        is_invalid=episode.is_invalid.at[turn].set(invalid),
    )
