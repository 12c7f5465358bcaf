"""The arms: who learns, who writes the responses, and how a pair is chosen among them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
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


MATCHED = (exploration.uniform, exploration.infomax)
"""Arms whose pairs can be held to two responses of one length."""

Choose = Callable[[Key, Array, Array, Array, Array], Array]
"""`(key, values[M, N], log_p0[N], valid[N], lengths[N]) -> indices[2]`, of one query."""


def chooser(arm: Arm, *, is_tilt: bool, match_lengths: bool = False) -> Choose:
    """Returns how an arm chooses the pair of one query.

    Args:
      arm: the arm.
      is_tilt: whether values are log pi - log p0, and not log pi.
      match_lengths: whether the two have equally many tokens, where two candidates have; only of
        arms in `MATCHED`.

    Returns:
      The choice, a `Choose`.
    """

    def choose(key: Key, values: Array, log_p0: Array, valid: Array, lengths: Array) -> Array:
        if is_tilt and arm.explore is exploration.v_optimal:  # it weighs candidates by their law
            law = ensembles.mixture_log_probs(values + jnp.broadcast_to(log_p0, values.shape))
            return exploration.v_optimal(key, values, valid=valid, law=law)
        pair = arm.explore(key, values, valid=valid)
        if not match_lengths:
            return pair
        same = (lengths[:, None] == lengths[None, :]) & valid[:, None] & valid[None, :]
        same &= ~jnp.eye(len(lengths), dtype=bool)
        return jnp.where(jnp.any(same), _matched(arm, key, values, same), pair)

    return choose


def _matched(arm: Arm, key: Key, values: Array, same: Array) -> Array:
    """Returns the pair of an arm among those that `same[N, N]` marks, if it marks any.

    A uniform pair is a candidate that has another of its length, and one of these.
    """
    keys = jax.random.split(key)
    if arm.explore is exploration.uniform:
        first = jax.random.categorical(keys[0], jnp.where(jnp.any(same, axis=1), 0.0, -jnp.inf))
        second = jax.random.categorical(keys[1], jnp.where(same[first], 0.0, -jnp.inf))
        return jnp.stack([first, second])
    gains = jnp.where(same, exploration.information_gain(values), -jnp.inf).ravel()
    order = jax.random.permutation(keys[0], gains.shape[0])  # members that agree: any pair
    best = order[jnp.argmax(gains[order])]
    return jnp.stack(jnp.divmod(best, same.shape[0]))


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
