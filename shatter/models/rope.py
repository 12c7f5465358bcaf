"""Rotary positions: their settings, their angles, and how features are turned by them."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from shatter.models.fields import SIZE, Field, check_choice, check_fields
from shatter.types import Array

_FACTOR = Field("number", 1e-3, 1e9)
ROPE_FIELDS = {
    "theta": Field("number", 1.0, 1e15),
    "factor": _FACTOR,
    "low_frequency_factor": _FACTOR,
    "high_frequency_factor": _FACTOR,
    "original_max_length": SIZE,
}
"""Types and ranges of the fields of `Rope`, within which all angles are finite in float32."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: pairs of a head's features are rotated by position times frequency.

    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864; the scaling "llama3" is that of
    the configurations of Llama 3.1.

    Attributes:
      theta: frequency i of a head of size s is `theta^(-2 i / s)`, in radians a token.
      scaling: "none"; "linear" divides every frequency by `factor`; "llama3" divides the low
        frequencies, keeps the high ones, and interpolates between them.
      factor: how much longer documents are than those of pretraining.
      low_frequency_factor: frequencies with fewer turns in `original_max_length` tokens are low.
      high_frequency_factor: frequencies with more turns are high.
      original_max_length: the largest length of a document in pretraining, in tokens.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: with the name of a wrong field, what is expected and what was found.
        """
        check_fields(vars(self), ROPE_FIELDS)
        check_choice("scaling", self.scaling, ("none", "linear", "llama3"))
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if self.scaling == "llama3" and not low < high:
            raise ValueError(
                f"low_frequency_factor must be below high_frequency_factor, found {low} and {high}"
            )


def cos_sin(rope: Rope, positions: Array, size: int) -> tuple[Array, Array]:
    """Computes the cosines and sines of the angles by which rotary positions turn features.

    Args:
      rope: the frequencies.
      positions: `[B, t]`.
      size: the head size, in features.

    Returns:
      Cosines and sines, each `[B, t, 1, size / 2]`.
    """
    frequencies = rope.theta ** (-np.arange(0, size, 2) / size)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        turns = frequencies * rope.original_max_length / (2 * np.pi)
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)  # the share that is not scaled
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    angles = positions.astype(float)[..., None, None] * jnp.asarray(frequencies)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotates features by the angles of their positions.

    Args:
      x: `[B, t, heads, size]`.
      turn: the cosines and sines of the angles, as `cos_sin` computes them.

    Returns:
      An array like x.
    """
    cos, sin = turn
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
