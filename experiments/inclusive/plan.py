"""How many answers are asked for, round by round, and the learning rate that goes with it."""

import numpy as np
import optax

from experiments.common.chunks import Chunk
from experiments.inclusive.config import Config
from experiments.inclusive.populations import Population


def chunks_of(config: Config, population: Population) -> list[Chunk]:
    """Returns one chunk a round: first the small rounds of the config, then the large ones.

    The two sizes are two programs to compile; the large rounds save steps once answers are many.
    """
    return [Chunk(1, size * len(population.prompts)) for size in _answers_asked(config)]


def answers_after(config: Config) -> np.ndarray:
    """Returns `[R]`, the answers a prompt after every round, the mean over prompts."""
    return np.cumsum(_answers_asked(config))


def warm_up(config: Config) -> optax.Schedule:
    """Returns a learning rate that rises over the small rounds.

    Adam's first steps are as long on noise as on a signal.
    """
    num_steps = config.rounds_small * config.num_steps
    return optax.linear_schedule(0.1 * config.learning_rate, config.learning_rate, num_steps)


def _answers_asked(config: Config) -> list[int]:
    """Returns the answers a prompt of every round."""
    small, large = config.answers_small, config.answers_large
    return [small] * config.rounds_small + [large] * config.rounds_large
