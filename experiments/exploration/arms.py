"""The arms of the exploration experiment: who learns, and how it is chosen what to ask."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from shatter import exploration

PASSIVE_CANDIDATES = 4  # two of them nearly always differ, and their frequencies stay p0's


class Arm(NamedTuple):
    """A learner, a source of candidates, and how a pair is chosen among them.

    Attributes:
      learner: "ensemble" or "map", the point estimate.
      candidates: "all" documents, samples of the "pretrained" model, or of the "members".
      explore: chooses the pair.
      settings: arguments of `explore` that the config sets: argument -> field of the config.
    """

    learner: str
    candidates: str
    explore: exploration.PairArm
    settings: Mapping[str, str] = MappingProxyType({})


ARMS = {
    "uniform": Arm("ensemble", "all", exploration.uniform),
    "passive": Arm("ensemble", "pretrained", exploration.uniform),
    "passive_map": Arm("map", "pretrained", exploration.uniform),
    "greedy": Arm("map", "all", exploration.greedy),
    "boltzmann": Arm("map", "all", exploration.boltzmann, {"temperature": "boltzmann_temperature"}),
    "thompson": Arm("ensemble", "all", exploration.thompson),
    "double_thompson": Arm("ensemble", "members", exploration.double_thompson),
    "double_thompson_sampled": Arm("ensemble", "all", exploration.double_thompson_sampled),
    "infomax": Arm("ensemble", "members", exploration.infomax),
    "variance": Arm("ensemble", "members", exploration.variance),
    "log_ratio_variance": Arm("ensemble", "members", exploration.log_ratio_variance),
    "ucb": Arm("ensemble", "members", exploration.ucb),
}


def baseline_of(arm: str) -> str:
    """Returns the name of the passive arm with the same learner."""
    return "passive" if ARMS[arm].learner == "ensemble" else "passive_map"
