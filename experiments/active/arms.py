"""The arms: whose utilities of the texts an arm sees, and how it chooses queries by them."""

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

from experiments.active.config import Config
from shatter import exploration


class Arm(NamedTuple):
    """How queries are chosen.

    Attributes:
      by: whose utilities it sees: those of the "members", those of the "frozen" model, or "none".
      explore: chooses whole queries; an arm of `shatter.exploration`.
      settings: the config's field for each keyword argument of `explore` that a flag sets.
    """

    by: Literal["members", "frozen", "none"]
    explore: exploration.QueryArm
    settings: Mapping[str, str] = {}

    def bound(self, config: Config) -> exploration.QueryArm:
        """Returns `explore` with its keyword arguments from the config."""
        values = {name: getattr(config, field) for name, field in self.settings.items()}
        return functools.partial(self.explore, **values)


ARMS = {
    "random": Arm("none", exploration.uniform_queries),
    "passive": Arm("frozen", functools.partial(exploration.boltzmann_queries, temperature=1.0)),
    "boltzmann": Arm(
        "members", exploration.boltzmann_queries, {"temperature": "boltzmann_temperature"}
    ),
    "thompson": Arm("members", exploration.thompson_queries),
    "double_thompson": Arm("members", exploration.double_thompson_queries),
    "infomax": Arm("members", exploration.infomax_queries),
    "variance": Arm("members", exploration.variance_queries),
    "joint_infomax": Arm(
        "members", exploration.joint_infomax_queries, {"num_outcomes": "num_outcomes"}
    ),
}
