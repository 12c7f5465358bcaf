"""The arms: who learns, who writes the responses, and how a pair is chosen among them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from shatter import ensembles, exploration, training
from shatter.types import Array, Key, Params

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


def chooser(arm: Arm, *, is_tilt: bool) -> Callable[[Key, Array, Array, Array], Array]:
    """Returns how an arm chooses the pair of one query.

    Args:
      arm: the arm.
      is_tilt: whether values are log pi - log p0, and not log pi.

    Returns:
      `(key, values[M, N], log_p0[N], valid[N]) -> indices[2]`.
    """

    def choose(key: Key, values: Array, log_p0: Array, valid: Array) -> Array:
        if is_tilt and arm.explore is exploration.v_optimal:  # it weighs candidates by their law
            law = ensembles.mixture_log_probs(values + jnp.broadcast_to(log_p0, values.shape))
            return exploration.v_optimal(key, values, valid=valid, law=law)
        return arm.explore(key, values, valid=valid)

    return choose


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
