"""The arms of the exploration experiment: who asks, about which candidates, by which score.

All arms share the learner: every run keeps a point estimate and an ensemble on the same answers.
"""

from typing import Literal, NamedTuple

from shatter import exploration
from shatter.exploration import PairArm

PASSIVE_CANDIDATES = 4  # two of them nearly always differ, and their frequencies stay p0's

Asker = Literal["members", "point", "laplace"]
Source = Literal["mixture", "point", "pretrained", "all"]
Targets = Literal["candidates", "samples", "all"]


class Arm(NamedTuple):
    """Who asks, where candidates come from, and how a pair is chosen among them.

    Attributes:
      explore: chooses the pairs; `v_optimal_batch` a whole round of them together.
      asker: whose log-probs it sees: the "members", the "point" estimate, or the Gaussian belief of
        the point estimate by "laplace".
      source: candidates are drawn from the members' "mixture", the "point" estimate's law, the
        "pretrained" model, or are "all" documents.
      temperature: of the law that candidates are drawn from, or that the arm itself draws from.
      targets: of a V-optimal batch, the texts whose variance counts: its "candidates", "samples" of
        the mixture with them, or "all" documents.
      by_temperature: whether the temperature is an argument of `explore`.
    """

    explore: PairArm | None
    asker: Asker = "members"
    source: Source = "mixture"
    temperature: float = 1.0
    targets: Targets = "candidates"
    by_temperature: bool = False


ARMS = {
    "v_optimal": Arm(None, temperature=2.0),
    "v_optimal_samples": Arm(None, temperature=2.0, targets="samples"),
    "v_optimal_all": Arm(None, temperature=2.0, targets="all"),
    "v_optimal_pair": Arm(exploration.v_optimal, temperature=2.0),
    "laplace": Arm(None, asker="laplace", source="point", temperature=2.0),
    "passive": Arm(exploration.uniform, source="pretrained"),
    "uniform": Arm(exploration.uniform, source="all"),
    "greedy": Arm(exploration.greedy, asker="point", source="all"),
    "boltzmann": Arm(exploration.boltzmann, source="all", temperature=2.0, by_temperature=True),
    "boltzmann_point": Arm(
        exploration.boltzmann, asker="point", source="all", temperature=2.0, by_temperature=True
    ),
    "thompson": Arm(exploration.thompson, source="all"),
    "double_thompson": Arm(exploration.double_thompson),
    "infomax": Arm(exploration.infomax),
    "variance": Arm(exploration.variance),
    "log_ratio_variance": Arm(exploration.log_ratio_variance),
    "ucb": Arm(exploration.ucb),
}
"""The arms by name. The first is the claim, named before the run."""

CLAIM = next(iter(ARMS))
BASELINES = ("passive", "boltzmann", "infomax")
