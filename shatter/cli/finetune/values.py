"""What ppo's value function makes of a step's rewards: advantages, and targets of the values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import losses
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import Mean
from shatter.cli.finetune.rollouts import Rollouts
from shatter.types import Array


class Estimates(NamedTuple):
    """What is learned from, each `[B, N, T]` and 0 outside the completions.

    Attributes:
      advantages: of the tokens, whitened over the step.
      values: of the states in which the tokens were chosen, when they were drawn.
      targets: of the values.
    """

    advantages: Array
    values: Array
    targets: Array


class Scored(NamedTuple):
    """The completions of a batch and their rewards, on the host.

    Attributes:
      rollouts: the completions, with values.
      rewards: `[B, N]`.
      is_real: bool `[B]`; false = the prompt fills up the batch.
    """

    rollouts: Rollouts
    rewards: np.ndarray
    is_real: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """The tokens that are learned from, bool `[B, N, T]`."""
        return np.asarray(self.rollouts.mask) & self.is_real[:, None, None]


def estimate(config: Config, batches: Sequence[Scored]) -> list[Estimates]:
    """Estimates advantages with the values that a step's completions had when they were drawn.

    The reward of a token is `-beta (log pi - log p0)`, plus the completion's at its last token.
    Advantages are whitened over the step, so that it does not matter how it is cut into batches.

    Args:
      config: the config.
      batches: the batches of the step.

    Returns:
      The estimates of each batch, on the host.
    """
    dtype = np.asarray(batches[0].rollouts.log_probs).dtype
    columns = [
        (
            batch.rollouts.log_probs,
            batch.rollouts.ref_log_probs,
            batch.rollouts.values,
            batch.rewards.astype(dtype),
            batch.counted,
        )
        for batch in batches
    ]
    found = _estimate(columns, config.beta, config.gamma, config.lam)
    return jax.tree.map(np.asarray, found)


@jax.jit
def _estimate(columns: Any, beta: float, gamma: float, lam: float) -> list[Estimates]:
    """Computes estimates; each batch is log-probs, the reference's, values, rewards and a mask."""
    found = []
    for log_probs, ref_log_probs, values, rewards, mask in columns:
        of_tokens = losses.kl_penalised_rewards(log_probs, ref_log_probs, rewards, mask, beta=beta)
        advantages = losses.generalised_advantages(
            of_tokens, values, mask, discount=gamma, decay=lam
        )
        found.append(Estimates(advantages, values, jnp.where(mask, advantages + values, 0.0)))
    flat = lambda arrays: jnp.concatenate([array.ravel() for array in arrays])
    white = losses.whiten(flat([e.advantages for e in found]), flat([c[-1] for c in columns]))
    ends = np.cumsum([e.advantages.size for e in found])[:-1]
    parts = jnp.split(white, ends)
    return [
        e._replace(advantages=part.reshape(e.advantages.shape))
        for e, part in zip(found, parts, strict=True)
    ]


def var_explained(batches: Sequence[Scored], estimates: Sequence[Estimates]) -> dict[str, Mean]:
    """Returns the share of the targets' variance that values explained; empty if there is none.

    `1 - mean (V - R)^2 / Var R` over the step's tokens, with the values at the draw.

    Args:
      batches: the batches of the step.
      estimates: their estimates.
    """
    join = lambda name: np.concatenate(
        [getattr(e, name)[b.counted] for b, e in zip(batches, estimates, strict=True)]
    ).astype(np.float64)
    values, targets = join("values"), join("targets")
    variance: Any = targets.var()
    if np.isclose(variance, 0.0):
        return {}
    once: Any = np.float64(1.0)
    return {"val/var_explained": Mean(once - np.square(values - targets).mean() / variance, once)}
