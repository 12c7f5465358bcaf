"""The arms: what learns, and how what is asked next is chosen."""

from typing import Literal, NamedTuple

from shatter import exploration


class Arm(NamedTuple):
    """How an arm learns and chooses.

    Attributes:
      learner: an "ensemble" of members, or one "map" estimate.
      explore: chooses two options of a prompt; an arm of `shatter.exploration`.
      picks_prompt: whether, of several random prompts, the one with the most informative pair is
        asked about; otherwise a random one is.
    """

    learner: Literal["ensemble", "map"]
    explore: exploration.PairArm
    picks_prompt: bool = False


ARMS = {
    "random_map": Arm("map", exploration.uniform),
    "greedy": Arm("map", exploration.greedy),
    "boltzmann": Arm("map", exploration.boltzmann),
    "random": Arm("ensemble", exploration.uniform),
    "thompson": Arm("ensemble", exploration.thompson),
    "double_thompson": Arm("ensemble", exploration.double_thompson),
    "double_thompson_sampled": Arm("ensemble", exploration.double_thompson_sampled),
    "infomax": Arm("ensemble", exploration.infomax, picks_prompt=True),
    "variance": Arm("ensemble", exploration.variance, picks_prompt=True),
    "log_ratio_variance": Arm("ensemble", exploration.log_ratio_variance, picks_prompt=True),
    "ucb": Arm("ensemble", exploration.ucb),
}
