"""Whole numbers as texts: a digit's token is the digit, and a sign may be before them."""

import jax.numpy as jnp

from shatter.environments.texts import Tokens, join
from shatter.types import Array


def write_number(value: Array, num_digits: int, *, minus: int) -> Tokens:
    """Returns a number in decimal digits, without leading zeros.

    Args:
      value: int `[]`; of a number with more digits only the last ones are written.
      num_digits: the largest number of digits.
      minus: the token of the minus sign.

    Returns:
      A text with room for `num_digits + 1` tokens.
    """
    places = jnp.asarray([10**k for k in reversed(range(num_digits))], int)
    digits = jnp.abs(value) // places % 10
    skipped = jnp.sum(jnp.cumsum(digits)[:-1] == 0)  # the last digit is always written
    digits = jnp.roll(digits, -skipped)
    sign = Tokens(jnp.full(1, minus), (value < 0).astype(int))
    return join([sign, Tokens(digits.astype(int), num_digits - skipped)])


def read_number(
    tokens: Array, start: Array | int, stop: Array | int, *, num_digits: int, minus: int
) -> tuple[Array, Array]:
    """Reads the number at `start <= t < stop`.

    Args:
      tokens: int `[T]`.
      start: int `[]`, where the number begins.
      stop: int `[]`, where it ends.
      num_digits: the largest number of digits.
      minus: the token of the minus sign.

    Returns:
      The number, int `[]`, and whether it is well-formed, bool `[]`: perhaps a sign, then one to
      `num_digits` digits.
    """
    column = jnp.arange(tokens.shape[0])
    is_negative = tokens[jnp.clip(start, 0, tokens.shape[0] - 1)] == minus
    first = start + is_negative
    inside = (column >= first) & (column < stop)
    is_digit = (tokens >= 0) & (tokens < 10)
    size = stop - first
    well_formed = (size >= 1) & (size <= num_digits) & jnp.all(~inside | is_digit)
    weights = 10 ** jnp.clip(stop - 1 - column, 0, num_digits - 1)
    value = jnp.sum(jnp.where(inside & is_digit, tokens * weights, 0))
    return jnp.where(is_negative, -value, value), well_formed
