"""Random numbers: every use of them in a seed has a stream of its own."""

import enum
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.scaling.config import Config
from shatter.types import Key


class Use(enum.IntEnum):
    """What random numbers are for.

    Arms that train share those of LEARN and SPEAK, as they share the texts: they are paired.
    """

    # None is 0, because NumPy pads seeds with zeros: [s, n] and [s, n, 0] are the same stream.
    CALIBRATE = 1
    TEXTS = 2
    SHOTS = 3
    LEARN = 4
    SPEAK = 5
    IMITATE = 6  # the first half of sft_rl
    REWARD_MODEL = 7
    BASE = 8
    PROMPTING = 9
    BEST_OF_N = 10


def generator(config: Config, seed: int, use: Use) -> np.random.Generator:
    """Returns NumPy's generator of a seed for one use."""
    return np.random.default_rng([config.seed, seed, use])


def keys_of(config: Config, seeds: Sequence[int], use: Use) -> Key:
    """Returns JAX's keys `[S]` of some seeds for one use."""
    root = jax.random.fold_in(jax.random.key(config.seed), use)
    numbers: Any = np.array(seeds, np.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(root, numbers)
