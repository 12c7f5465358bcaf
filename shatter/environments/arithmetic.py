"""Arithmetic in several steps, with a calculator as the tool."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter.environments.arithmetic_words import (
    IDS,
    OPERATORS,
    expression_value,
    read_command,
    words,
    write_question,
)
from shatter.environments.base import Environment
from shatter.environments.numbers import write_number
from shatter.environments.texts import Tokens, as_tokens, join
from shatter.types import Array, Key


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
    """The questions of `arithmetic` and what a step costs.

    Attributes:
      num_operations: n, the number of operations in a question, 1 or more.
      max_operand: m; operands are drawn uniformly from 1 to m.
      price: what every action costs, as a share of the reward of 1 for the right answer.
    """

    num_operations: int = 2
    max_operand: int = 9
    price: float = 0.05

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
          ValueError: if a size is not positive, the price is negative, or numbers could have more
            than four digits.
        """
        if self.num_operations < 1 or self.max_operand < 1 or not self.price >= 0:
            raise ValueError(
                "expected num_operations >= 1, max_operand >= 1 and price >= 0, found "
                f"{self.num_operations}, {self.max_operand} and {self.price}"
            )
        if self.num_digits > 4:
            raise ValueError(
                "expected results of at most four digits, because products are int32, found up to "
                f"{self.num_digits} with num_operations {self.num_operations} and max_operand "
                f"{self.max_operand}: lower one of them"
            )

    @property
    def num_digits(self) -> int:
        """The largest number of digits of a number.

        It holds the largest result if every step makes the mistake of the scripted expert: m + m^2
        + ... + m^(n + 1) by products, m + n (m + 1) by sums.
        """
        n, m = self.num_operations, self.max_operand
        return len(str(max(sum(m ** (k + 1) for k in range(n + 1)), m + n * (m + 1))))

    @property
    def max_action_length(self) -> int:
        """The number of tokens of the longest command, a call with two numbers."""
        return 4 + 2 * (self.num_digits + 1)


class ArithmeticState(NamedTuple):
    """What the environment remembers.

    Attributes:
      operands: int `[n + 1]`, of the question, from left to right.
      operators: int `[n]`, 0 for +, 1 for -, 2 for *.
      result: int `[]`, the calculator's last result; at first the first operand.
      num_results: int `[]`, the number of results so far.
      is_invalid: bool `[]`, whether the last action was ill-formed.
    """

    operands: Array
    operators: Array
    result: Array
    num_results: Array
    is_invalid: Array


def arithmetic(config: ArithmeticConfig) -> Environment:
    """Makes an environment that asks for the value of an expression such as `(3 + 4) * 5`.

    The question is `( ( a + b ) * c ) - d =`, nested to the left. An action is a command to the
    calculator, `call * 7 , 5 <end>`, which is answered by `= 35`, or `answer 35 <end>`, which ends
    the episode. Numbers have up to `config.num_digits` digits and perhaps a minus sign. Any other
    action is ill-formed and answered by `<error>`, as is a result with too many digits. The reward
    of an action is minus `config.price`, plus 1 for the right answer.

    Args:
      config: the questions and the price.

    Returns:
      The environment, in the tokens of `ARITHMETIC_VOCABULARY`; actions have room for any number
      of tokens.
    """

    def reset(key: Key) -> tuple[ArithmeticState, Tokens]:
        operand_key, operator_key = jax.random.split(key)
        n, most = config.num_operations, config.max_operand
        operands = jax.random.randint(operand_key, (n + 1,), 1, most + 1, int)
        operators = jax.random.randint(operator_key, (n,), 0, len(OPERATORS), int)
        no = jnp.zeros((), bool)
        state = ArithmeticState(operands, operators, operands[0], jnp.zeros((), int), no)
        return state, write_question(operands, operators, config.num_digits)

    def step(
        state: ArithmeticState, action: Tokens
    ) -> tuple[ArithmeticState, Tokens, Array, Array]:
        command = read_command(action, config.num_digits)
        fits = jnp.abs(command.result) < 10**config.num_digits
        calls, answers = command.is_call & fits, command.is_answer
        right = answers & (command.result == expression_value(state.operands, state.operators))
        state = state._replace(
            result=jnp.where(calls, command.result, state.result),
            num_results=state.num_results + calls,
            is_invalid=~calls & ~answers,
        )
        number = write_number(command.result, config.num_digits, minus=IDS["-"])
        said = join([words("="), number])
        error = as_tokens([IDS["<error>"]], size=said.tokens.shape[0])
        said = jax.tree.map(lambda a, b: jnp.where(calls, a, b), said, error)
        said = said._replace(length=jnp.where(answers, 0, said.length))
        return state, said, right - jnp.asarray(config.price), answers

    return Environment(reset, step, lambda state: state.is_invalid)


def arithmetic_expert(
    config: ArithmeticConfig, *, quality: float | Array = 1.0
) -> Callable[[Key, ArithmeticState], Tokens]:
    """Makes a script that solves `arithmetic`, or fails at a given rate.

    It calls the calculator for one operation after the other and answers with the last result. An
    action is a mistake with probability 1 - q, independently: its first number is then too large by
    one, after which the answer cannot be right. It is right with probability q^(n + 1).

    Args:
      config: the configuration of the environment.
      quality: `[]`, q, between 0 and 1.

    Returns:
      `(key, state) -> action`.

    Raises:
      ValueError: if a known quality is not between 0 and 1.
    """
    if not isinstance(quality, jax.core.Tracer) and not 0 <= quality <= 1:
        raise ValueError(f"quality must be between 0 and 1, found {quality}")

    def act(key: Key, state: ArithmeticState) -> Tokens:
        slips = ~jax.random.bernoulli(key, quality)
        place = jnp.minimum(state.num_results, config.num_operations - 1)
        number = lambda value: write_number(value, config.num_digits, minus=IDS["-"])
        first = number(state.result + slips)
        signs = jnp.asarray([IDS[sign] for sign in OPERATORS], int)
        sign = Tokens(signs[state.operators[place]][None], jnp.ones((), int))
        second = number(state.operands[place + 1])
        call = join([words("call"), sign, first, words(","), second, words("<end>")])
        answer = join([words("answer"), first, words("<end>")], size=call.tokens.shape[0])
        is_over = state.num_results == config.num_operations
        return jax.tree.map(lambda a, b: jnp.where(is_over, a, b), answer, call)

    return act
