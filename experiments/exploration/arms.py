"""The arms of the exploration experiment: who asks, about which candidates, by which score.

All arms share the learner: every run keeps a point estimate and an ensemble on the same answers.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from shatter import exploration
from shatter.types import Array

PASSIVE_CANDIDATES = 4  # two of them nearly always differ, and their frequencies stay p0's

Asker = Literal["members", "point", "laplace"]
Source = Literal["mixture", "point", "pretrained", "all"]
Targets = Literal["candidates", "samples", "all"]


class Arm(NamedTuple):
    """Who asks, where candidates come from, and how a pair is chosen among them.

    Attributes:
      explore: a `PairArm`, for each query alone; None = `v_optimal_batch`, for a whole round.
      asker: whose log-probs it sees: the "members", the "point" estimate, or the Gaussian belief of
        the point estimate by "laplace".
      source: candidates are drawn from the members' "mixture", the "point" estimate's law, the
        "pretrained" model, or are "all" documents.
      temperature: of the law that candidates are drawn from, or that the arm itself draws from.
      targets: of a V-optimal batch, the texts whose variance counts: its "candidates", "samples" of
        the mixture with them, or "all" documents.
      by_temperature: whether the temperature is an argument of `explore`.
    """

    explore: Callable[..., Array] | None
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
    "laplace": Arm(None, asker="laplace", temperature=2.0),
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
    "mass_weighted_variance": Arm(exploration.mass_weighted_variance),
    "law_infomax": Arm(exploration.law_infomax, temperature=2.0),
    "information_directed": Arm(exploration.information_directed),
    "ucb": Arm(exploration.ucb),
    "delta_ucb": Arm(exploration.delta_ucb),
}
"""The arms by name. The first is the claim, named before the run."""

CLAIM = next(iter(ARMS))
BASELINES = ("passive", "boltzmann", "infomax")


def arm_of(name: str, *, source: Source | None, temperature: float | None) -> Arm:
    """Returns an arm, with another source of candidates or another temperature where it has one.

    The passive arm asks about samples of the pretrained model whatever is given; no arm but
    boltzmann has a temperature where all documents are candidates.

    Args:
      name: a name in `ARMS`.
      source: for arms that do not ask about the pretrained model; None = the arm's own.
      temperature: of the law that candidates or pairs are drawn from; None = the arm's own.

    Returns:
      The arm.
    """
    arm = ARMS[name]
    if arm.source == "pretrained":
        return arm
    return arm._replace(
        source=arm.source if source is None else source,
        temperature=arm.temperature if temperature is None else temperature,
    )
