"""Environments that are no jax functions: a folder of texts, and a calculator that is a process."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.environments import (
    HostEnvironment,
    Tokens,
    character_codec,
    host_scripted_rollout,
    in_program,
    scripted_rollout,
)
from tests.environments.worlds import actions, assert_equal_transcripts, row

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.?+-*"
CODEC = character_codec(ALPHABET)
ROOM = {"max_turns": 4, "max_action_length": 18, "end_of_action": ALPHABET.index("\n")}
KEYS = jax.random.split(jax.random.key(3), 4)
PRICE = 0.125
ANIMALS = {"owl": ("barn", "oats"), "fox": ("den", "eggs")}
CALCULATOR = """
import operator, sys
signs = {"+": operator.add, "-": operator.sub, "*": operator.mul}
for line in sys.stdin:
    a, sign, b = line.split()
    print(signs[sign](int(a), int(b)), flush=True)
"""


class State(NamedTuple):
    task: str
    heard: str
    turn: int = 0
    place: tuple[str, int] = ("", 0)
    is_invalid: bool = False


class World(NamedTuple):
    """An environment, a script for it, and how what it stands on is taken away.

    Attributes:
      environment: the environment.
      expert: `(key, state) -> action`; its second action is the first that reads the outside.
      take_away: takes the outside away.
      error: what the environment raises then.
      message: what the error names.
      told: `(task) -> texts`, what the environment says to the actions before the answer.
    """

    environment: HostEnvironment
    expert: Callable[..., str]
    take_away: Callable[[], object]
    error: type[Exception]
    message: str
    told: Callable[[str], list[str]]


def drawn(key: jax.Array) -> np.random.Generator:
    """Returns NumPy's generator of a key, without a computation of jax."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def answered(state: State, right: str, said: str) -> tuple[State, str, float, bool]:
    return state, "", (said == right) - PRICE, True


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[World]:
    """Opens texts of a folder, and reads them line by line."""
    for name, (home, food) in ANIMALS.items():
        (folder / f"{name}.txt").write_text(f"the {name} eats {food}.\nit lives in a\n{home}\n")

    def reset(key):
        name = str(drawn(key).choice(list(ANIMALS)))
        return State(name, ""), f"where is the {name}?\n"

    def read(state, name, number):
        lines = (folder / f"{name}.txt").read_text().splitlines()
        heard = lines[number] if number < len(lines) else "no more"
        return state._replace(heard=heard, place=(name, number)), f"{heard}\n", -PRICE, False

    def step(state, action):
        command, _, text = action.removesuffix("\n").partition(" ")
        state = state._replace(turn=state.turn + 1, is_invalid=False)
        if command == "open" and text in ANIMALS:
            return read(state, text, 1)
        if command == "next" and state.place[0]:
            return read(state, state.place[0], state.place[1] + 1)
        if command == "answer":
            return answered(state, ANIMALS[state.task][0], text)
        return state._replace(is_invalid=True), "what?\n", -PRICE, False

    def expert(key, state):
        return ("dance", f"open {state.task}", "next", f"answer {state.heard}")[state.turn]

    yield World(
        environment=HostEnvironment(reset, step, lambda state: state.is_invalid),
        expert=expert,
        take_away=lambda: [(folder / f"{name}.txt").unlink() for name in ANIMALS],
        error=FileNotFoundError,
        message=r"No such file or directory: '.*(owl|fox)\.txt'",
        told=lambda task: ["what?", "it lives in a", ANIMALS[task][0]],
    )


@contextlib.contextmanager
def calculator(folder: Path) -> Iterator[World]:
    """Asks a process, which reads a sum a line and writes its value."""
    del folder
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}

    def reset(key):
        a, b = drawn(key).integers(10, 100, size=2)
        return State(f"{a} * {b}", ""), f"what is {a} * {b}?\n"

    def value(line):
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{line}\n".encode())
        found = process.stdout.readline().decode().removesuffix("\n")
        if not found:
            raise RuntimeError(f"the calculator has ended with {process.wait()}: start it again")
        return found

    def step(state, action):
        command, _, text = action.removesuffix("\n").partition(" ")
        state = state._replace(turn=state.turn + 1, is_invalid=False)
        if command == "work" and len(text.split()) == 3:
            heard = value(text)
            return state._replace(heard=heard), f"{heard}\n", -PRICE, False
        if command == "answer":
            a, b = map(int, state.task.split(" * "))
            return answered(state, str(a * b), text)
        return state._replace(is_invalid=True), "what?\n", -PRICE, False

    def expert(key, state):
        less = f"work {state.task.replace('*', '-')}"
        return ("add", less, f"work {state.task}", f"answer {state.heard}")[state.turn]

    def told(task):
        a, b = map(int, task.split(" * "))
        return ["what?", str(a - b), str(a * b)]

    with subprocess.Popen([sys.executable, "-c", CALCULATOR], **pipes) as process:
        try:
            yield World(
                environment=HostEnvironment(reset, step, lambda state: state.is_invalid),
                expert=expert,
                take_away=lambda: (process.kill(), process.wait()),
                error=RuntimeError,
                message="the calculator has ended with -9: start it again",
                told=told,
            )
        finally:
            process.kill()


every_world = pytest.mark.parametrize("make", [browser, calculator])


def inside(world: World, written: list[list[list[int]]]) -> Callable:
    """Returns a jitted `(keys[K]) -> transcripts[K]` that writes the actions of every lane."""
    environment = in_program(world.environment, max_observation_length=24, codec=CODEC, **ROOM)
    table = np.zeros((len(written), ROOM["max_turns"], ROOM["max_action_length"]), int)
    sizes = np.array([[len(action) for action in lane] for lane in written])
    for lane, texts in enumerate(written):
        for turn, action in enumerate(texts):
            table[lane, turn, : len(action)] = action

    def play(key, of_lane, lengths):
        act = lambda key, state: Tokens(of_lane[state.turn], lengths[state.turn])
        return scripted_rollout(act, key, environment, max_length=120, **ROOM)

    given = jnp.asarray(table), jnp.asarray(sizes)
    return jax.jit(lambda keys: jax.vmap(play)(keys, *given))


def driven(world: World, key: jax.Array):
    given = {"codec": CODEC, "max_length": 120, **ROOM}
    return host_scripted_rollout(world.expert, key, world.environment, **given)


@every_world
def test_both_drivers_play_it(make, tmp_path):
    """The same episodes by a loop on the host and in one program, with what the outside said."""
    with make(tmp_path) as world:
        shown = [driven(world, key) for key in KEYS]
        found = inside(world, [actions(transcript) for transcript in shown])(KEYS)
        for lane, transcript in enumerate(shown):
            assert_equal_transcripts(row(found, lane), transcript)
        tasks = [world.environment.reset(jax.random.split(key)[0])[0].task for key in KEYS]
        assert len(set(tasks)) > 1
        for task, transcript in zip(tasks, shown, strict=True):
            lines = CODEC.decode(transcript.tokens[transcript.valid]).splitlines()
            assert lines[2::2] == world.told(task)
            assert transcript.rewards.tolist() == [-PRICE, -PRICE, -PRICE, 1 - PRICE]
            assert transcript.is_invalid.tolist() == [True, False, False, False]


@every_world
def test_what_has_gone_is_named(make, tmp_path):
    """The driver on the host lets the error through; the one in a program adds the action."""
    with make(tmp_path) as world:
        written = actions(driven(world, KEYS[0]))
        play = inside(world, [written])
        world.take_away()
        with pytest.raises(world.error, match=world.message):
            driven(world, KEYS[0])
        asked = r"cannot answer action 1, '(open|work) .*\\n': " + world.error.__name__
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"{asked}: .*{world.message}"):
            jax.block_until_ready(play(KEYS[:1]))
