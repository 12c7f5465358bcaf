"""The arms: whose utilities of the texts an arm sees, and how it chooses queries by them."""

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.active.config import Config
from experiments.active.design import joint_infomax, v_optimal
from shatter import exploration
from shatter.exploration.base import top
from shatter.numerics import entropy
from shatter.types import Array, Key


class Arm(NamedTuple):
    """How queries are chosen.

    Attributes:
      by: whose utilities it sees: those of the "members", the learner's "belief" about them (or
        the members again, where there is none), those of the "frozen" model, or "none".
      explore: chooses whole queries; an arm of `shatter.exploration`.
      settings: the config's field for each keyword argument of `explore` that a flag sets.
      is_costly: whether its time goes by the square of the candidates where it sees members, so
        that it is given fewer.
    """

    by: Literal["members", "belief", "frozen", "none"]
    explore: exploration.QueryArm
    settings: Mapping[str, str] = {}
    is_costly: bool = False

    def bound(self, config: Config) -> exploration.QueryArm:
        """Returns `explore` with its keyword arguments from the config."""
        values = {name: getattr(config, field) for name, field in self.settings.items()}
        return functools.partial(self.explore, **values)


def entropy_queries(
    key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
) -> Array:
    """Returns the queries whose choice is the least certain under the members' mixture.

    Uncertainty sampling: it asks where people differ as gladly as where the members do. Arguments
    and result are those of `shatter.exploration.QueryArm`.
    """
    valid = jnp.ones(log_probs.shape[1:], bool) if valid is None else valid
    laws = jax.nn.softmax(jnp.where(valid[None], log_probs, -1e30), axis=-1)
    scores = entropy(jnp.log(jnp.mean(laws, axis=0)))
    return top(key, scores, jnp.sum(valid, axis=-1) >= 2, num_queries, distinct=True)


ARMS = {
    "random": Arm("none", exploration.uniform_queries),
    "passive": Arm("frozen", functools.partial(exploration.boltzmann_queries, temperature=1.0)),
    "boltzmann": Arm(
        "members", exploration.boltzmann_queries, {"temperature": "boltzmann_temperature"}
    ),
    "thompson": Arm("members", exploration.thompson_queries),
    "double_thompson": Arm("members", exploration.double_thompson_queries),
    "quality_gap": Arm("members", exploration.delta_ucb_queries),
    "information_directed": Arm("members", exploration.information_directed_queries),
    "entropy": Arm("members", entropy_queries),
    "infomax": Arm("members", exploration.infomax_queries),
    "variance": Arm("members", exploration.variance_queries),
    "joint_infomax": Arm("belief", joint_infomax, {"num_outcomes": "num_outcomes"}),
    "v_optimal": Arm("belief", v_optimal, is_costly=True),
}
