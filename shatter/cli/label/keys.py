"""The random keys of a project, one for each use of its seed."""

import enum

import jax

from shatter.types import Key


class Use(enum.IntEnum):
    """What a key of a project is used for; the numbers are folded into the key of its seed."""

    CANDIDATES = 1
    PRIOR_SCALE = 3
    MEMBERS = 4
    PROPOSALS = 5
    LEARNING = 6


def project_key(seed: int, use: Use) -> Key:
    """Returns the key of one use of a project's seed."""
    return jax.random.fold_in(jax.random.key(seed), int(use))
