"""The arms: who learns, who writes the responses, and how a pair is chosen among them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from shatter import exploration, training
from shatter.types import Array, Params

Kind = Literal["ilhf", "pipeline", "dpo"]


class Arm(NamedTuple):
    """One way to ask and to learn.

    Attributes:
      candidates: samples of the "base", or of the "learner": of the members, or of the policy.
      explore: a `PairArm`.
      temperature: of every token of the samples.
      kind: an ensemble that learns by "ilhf", a "pipeline" of reward model and policy, or one model
        that learns by "dpo".
      retrained: whether the policy of a pipeline is retrained from its start every period, instead
        of taking a few steps a round.
    """

    candidates: Literal["base", "learner"]
    explore: Callable[..., Array]
    temperature: float = 1.0
    kind: Kind = "ilhf"
    retrained: bool = False


ARMS = {
    "passive": Arm("base", exploration.uniform),
    "pool_infomax": Arm("base", exploration.infomax),
    "sampled": Arm("learner", exploration.uniform),
    "thompson": Arm("learner", exploration.thompson),
    "double_thompson": Arm("learner", exploration.double_thompson),
    "infomax": Arm("learner", exploration.infomax),
    "v_optimal": Arm("learner", exploration.v_optimal, temperature=2.0),
    "offline": Arm("base", exploration.uniform, kind="pipeline", retrained=True),
    "periodic": Arm("learner", exploration.uniform, kind="pipeline", retrained=True),
    "online": Arm("learner", exploration.uniform, kind="pipeline"),
    "information_directed": Arm("learner", exploration.variance, kind="pipeline"),
    "dpo_offline": Arm("base", exploration.uniform, kind="dpo"),
    "dpo_online": Arm("learner", exploration.uniform, kind="dpo"),
}


class Speaker(NamedTuple):
    """Who speaks after a round, and what the learner takes people to choose by.

    Attributes:
      own: the adapters of those who speak together, `[M]` on every leaf: members, or one policy.
      utilities: `(responses) -> [K, ...]`, nats, of K who predict choices together.
      step: int `[]`, rounds so far.
    """

    own: Params
    utilities: Callable[[Any], Array]
    step: Array


class Learner(NamedTuple):
    """A learner, whoever it is.

    Attributes:
      interaction: its halves.
      speaker: `(state) -> speaker`.
    """

    interaction: training.Interaction
    speaker: Callable[[Any], Speaker]
