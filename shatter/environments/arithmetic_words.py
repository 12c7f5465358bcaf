"""The words of `arithmetic`: how its questions are written and its commands are read."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from shatter.environments.numbers import read_number, write_number
from shatter.environments.texts import Tokens, as_tokens, join
from shatter.types import Array

ARITHMETIC_VOCABULARY = (
    *"0123456789",
    *("+", "-", "*", "(", ")", "=", ","),
    *("call", "answer", "<end>", "<error>"),
)
"""The words of `arithmetic`; a token is a place in this tuple, and a digit's token is the digit."""

IDS = {word: token for token, word in enumerate(ARITHMETIC_VOCABULARY)}
"""The token of every word."""
ARITHMETIC_END = IDS["<end>"]
"""The token that ends an action of `arithmetic`."""
OPERATORS = ("+", "-", "*")
"""The operators in the order of their numbers in `ArithmeticState`."""


def expression_value(operands: Array, operators: Array) -> Array:
    """Returns the value of an expression that is nested to the left.

    Args:
      operands: int `[n + 1]`.
      operators: int `[n]`, 0 for +, 1 for -, 2 for *.

    Returns:
      int `[]`.
    """
    chex.assert_rank([operands, operators], 1)
    value = operands[0]
    for k in range(operators.shape[0]):
        value = _apply(operators[k], value, operands[k + 1])
    return value


def _apply(operator: Array, x: Array, y: Array) -> Array:
    return jnp.where(operator == 0, x + y, jnp.where(operator == 1, x - y, x * y))


def words(*names: str) -> Tokens:
    """Returns words as a text.

    Args:
      *names: words of `ARITHMETIC_VOCABULARY`.

    Returns:
      A text.
    """
    return as_tokens([IDS[name] for name in names])


def write_question(operands: Array, operators: Array, num_digits: int) -> Tokens:
    """Returns the question `( ( a + b ) * c ) - d =`.

    Args:
      operands: int `[n + 1]`.
      operators: int `[n]`.
      num_digits: the largest number of digits of an operand.

    Returns:
      A text.
    """
    number = lambda k: write_number(operands[k], num_digits, minus=IDS["-"])
    n = operators.shape[0]
    signs = jnp.asarray([IDS[sign] for sign in OPERATORS], int)[operators]
    parts = [words(*"(" * (n - 1)), number(0)] if n > 1 else [number(0)]
    for k in range(n):
        parts += [Tokens(signs[k : k + 1], jnp.ones((), int)), number(k + 1)]
        parts += [words(")")] if k < n - 1 else []
    return join([*parts, words("=")])


class Command(NamedTuple):
    """A command.

    Attributes:
      is_call: bool `[]`, whether it is a well-formed call of the calculator.
      is_answer: bool `[]`, whether it is a well-formed answer.
      result: int `[]`, the number that it answers or computes.
    """

    is_call: Array
    is_answer: Array
    result: Array


def read_command(action: Tokens, num_digits: int) -> Command:
    """Reads a command.

    Args:
      action: the text, its end token included.
      num_digits: the largest number of digits of a number.

    Returns:
      The command; neither a call nor an answer where it is ill-formed.
    """
    chex.assert_rank([action.tokens, action.length], [1, 0])
    room = max(action.tokens.shape[0], 3)
    tokens = jnp.pad(action.tokens, (0, room - action.tokens.shape[0]))
    column, last = jnp.arange(room), action.length - 1
    has_end = (last >= 1) & (tokens[jnp.maximum(last, 0)] == ARITHMETIC_END)
    number = lambda start, stop: read_number(
        tokens, start, stop, num_digits=num_digits, minus=IDS["-"]
    )
    answer, is_number = number(1, last)
    comma = jnp.argmax((tokens == IDS[","]) & (column < last))
    signs = jnp.asarray([IDS[sign] for sign in OPERATORS], int)
    is_sign = tokens[1] == signs
    (x, has_x), (y, has_y) = number(2, comma), number(comma + 1, last)
    return Command(
        is_call=has_end & (tokens[0] == IDS["call"]) & jnp.any(is_sign) & has_x & has_y,
        is_answer=has_end & (tokens[0] == IDS["answer"]) & is_number,
        result=jnp.where(tokens[0] == IDS["answer"], answer, _apply(jnp.argmax(is_sign), x, y)),
    )
