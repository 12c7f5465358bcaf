"""The algorithms that are compared, as values of a few factors."""

from typing import Literal, NamedTuple

Kind = Literal["pipeline", "ilhf", "dpo"]


class Algorithm(NamedTuple):
    """One way to ask and to learn.

    Attributes:
      kind: a "pipeline" of reward model and policy, or one model by "ilhf" or "dpo".
      responses: who writes the responses: the "pretrained" model, or the "learner" as it is.
      arm: how the pair is chosen among them: "passive", two samples; "infomax"; "v_optimal"; or
        "selection", as the flag of that name says.
      retrained: whether the policy of a pipeline is retrained from its start every period, instead
        of taking a few steps a round.
    """

    kind: Kind
    responses: Literal["pretrained", "learner"] = "learner"
    arm: Literal["passive", "infomax", "v_optimal", "selection"] = "passive"
    retrained: bool = False


ALGORITHMS = {
    "offline": Algorithm("pipeline", "pretrained", retrained=True),
    "periodic": Algorithm("pipeline", retrained=True),
    "online": Algorithm("pipeline"),
    "information_directed": Algorithm("pipeline", arm="selection"),
    "ilhf_offline": Algorithm("ilhf", "pretrained"),
    "ilhf_passive": Algorithm("ilhf"),
    "ilhf_infomax": Algorithm("ilhf", arm="infomax"),
    "ilhf_v_optimal": Algorithm("ilhf", arm="v_optimal"),
    "dpo_offline": Algorithm("dpo", "pretrained"),
    "dpo_online": Algorithm("dpo"),
}
"""The algorithms by name; the first is the baseline of every comparison."""

BASELINE = next(iter(ALGORITHMS))
