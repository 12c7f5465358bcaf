"""Arithmetic: questions, commands and rewards against Python, and the expert's rate of success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.environments import (
    ARITHMETIC_END,
    ARITHMETIC_VOCABULARY,
    ArithmeticConfig,
    arithmetic,
    arithmetic_expert,
    as_tokens,
    scripted_rollout,
)
from shatter.environments.numbers import read_number, write_number

CONFIG = ArithmeticConfig(num_operations=2, max_operand=9, price=0.125)
ROOM = CONFIG.max_action_length
MINUS = ARITHMETIC_VOCABULARY.index("-")
ENVIRONMENT = arithmetic(CONFIG)
step, reset = jax.jit(ENVIRONMENT.step), jax.jit(ENVIRONMENT.reset)


def ids(text: str, size: int | None = None):
    return as_tokens([ARITHMETIC_VOCABULARY.index(word) for word in text.split()], size=size)


def text(tokens) -> str:
    return " ".join(ARITHMETIC_VOCABULARY[token] for token in tokens.tokens[: int(tokens.length)])


def number(value: int) -> str:
    return " ".join(str(value))


def python_value(question: str) -> int:
    return int(eval(question.replace(" ", "").removesuffix("=")))


@pytest.mark.parametrize("value", [0, 7, -7, 10, 409, -999])
def test_numbers_are_written_as_python_does_and_read_back(value: int):
    written = jax.jit(lambda value: write_number(value, 3, minus=MINUS))(value)
    assert text(written) == number(value)
    read, well_formed = read_number(written.tokens, 0, written.length, num_digits=3, minus=MINUS)
    assert (int(read), bool(well_formed)) == (value, True)


def test_questions_are_what_python_reads():
    seen = set()
    for key in jax.random.split(jax.random.key(0), 12):
        state, question = reset(key)
        words = text(question)
        operands, operators = np.asarray(state.operands), np.asarray(state.operators)
        signs = [str("+-*"[place]) for place in operators]
        a, b, c = operands
        assert words == f"( {a} {signs[0]} {b} ) {signs[1]} {c} ="
        right = f"answer {number(python_value(words))} <end>"
        _, said, reward, done = step(state, ids(right, ROOM))
        assert (float(reward), bool(done), int(said.length)) == (1 - 0.125, True, 0)
        wrong = f"answer {number(python_value(words) + 1)} <end>"
        _, _, reward, done = step(state, ids(wrong, ROOM))
        assert (float(reward), bool(done)) == (-0.125, True)
        seen |= set(signs)
    assert seen == set("+-*")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("call + 1 2 , 9 <end>", "= 2 1"),
        ("call - 1 2 , 3 0 <end>", "= - 1 8"),
        ("call * - 1 2 , - 9 <end>", "= 1 0 8"),
        ("call * 0 1 2 , 0 <end>", "= 0"),
        ("call * 9 9 , 9 9 <end>", "<error>"),  # four digits
        ("call + 1 2 , <end>", "<error>"),
        ("call + , 3 <end>", "<error>"),
        ("call + 1 2 3 4 , 9 <end>", "<error>"),
        ("call + 1 , 2 , 3 <end>", "<error>"),
        ("call = 1 2 , 3 <end>", "<error>"),
        ("call 1 + 2 <end>", "<error>"),
        ("call + 1 2 , 9", "<error>"),  # cut
        ("answer <end>", "<error>"),
        ("answer - <end>", "<error>"),
        ("answer 1 + 2 <end>", "<error>"),
        ("answer 1 2 3 4 <end>", "<error>"),
        ("<end>", "<error>"),
        ("<error> 1 <end>", "<error>"),
    ],
)
def test_the_calculator_answers_commands_and_refuses_all_else(command: str, said: str):
    state, _ = reset(jax.random.key(0))
    after, observation, reward, done = step(state, ids(command, ROOM))
    assert text(observation) == said
    assert (float(reward), bool(done)) == (-0.125, False)
    assert bool(ENVIRONMENT.is_invalid(after)) == (said == "<error>")
    assert int(after.num_results) == (said != "<error>")


def playing(config: ArithmeticConfig):
    """Returns `(quality) -> transcripts` of the expert."""

    def run(quality, key):
        return scripted_rollout(
            arithmetic_expert(config, quality=quality),
            key,
            arithmetic(config),
            max_turns=5,
            max_action_length=config.max_action_length,
            max_length=60,
            end_of_action=ARITHMETIC_END,
        )

    keys = jax.random.split(jax.random.key(1), NUM)
    return jax.jit(lambda quality: jax.vmap(run, in_axes=(None, 0))(quality, keys))


NUM = 4000
play = playing(CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("num_operations", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_the_expert_is_always_right_at_quality_one(num_operations: int):
    other = ArithmeticConfig(num_operations, max_operand=20, price=0.125)
    transcripts = (play if num_operations == 2 else playing(other))(1.0)
    steps = num_operations + 1
    assert jnp.all(transcripts.done)
    assert jnp.all(transcripts.num_turns == steps)
    assert not jnp.any(transcripts.num_invalid)
    expected = [-0.125] * num_operations + [1 - 0.125]
    np.testing.assert_array_equal(transcripts.rewards[:, :steps], [expected] * NUM)


@pytest.mark.parametrize("quality", [0.0, 0.8])
def test_the_expert_is_right_at_the_stated_rate(quality: float):
    rate = quality**3
    transcripts = play(quality)
    right = jnp.mean(jnp.max(transcripts.rewards, axis=1) > 0)
    assert abs(right - rate) <= 4 * np.sqrt(rate * (1 - rate) / NUM)
    assert jnp.all(transcripts.done)
    assert not jnp.any(transcripts.num_invalid)


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match=r"at most four digits, .* found up to 6"):
        ArithmeticConfig(num_operations=3, max_operand=20)
    with pytest.raises(ValueError, match="num_operations >= 1"):
        ArithmeticConfig(num_operations=0)
    with pytest.raises(ValueError, match="price >= 0"):
        ArithmeticConfig(price=float("nan"))
    with pytest.raises(ValueError, match=r"between 0 and 1, found 1\.5"):
        arithmetic_expert(CONFIG, quality=1.5)
