"""The objectives under test, on a choice among K messages or on ranks, and their rewards."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from experiments.iia.config import Config
from shatter import losses
from shatter.numerics import masked_mean
from shatter.types import Array


class Objective(NamedTuple):
    """A loss on scores (log pi, or a reward model's rewards) and what its minimum implies.

    Attributes:
      choice_loss: `(scores[K], ref_log_probs[K], choice[], valid[K]) -> []`.
      ranks_loss: `(scores[K], ref_log_probs[K], ranks[K]) -> []`; on the ranks of a choice it is
        equal to `choice_loss`, and slower.
      scale: the implied reward is `scale (score - ref_log_prob)`; None = the score.
      beta: the policy at the minimum is `p0 exp(reward / beta) / Z`; None = `exp(reward) / Z`.
    """

    choice_loss: Callable[[Array, Array, Array, Array], Array]
    ranks_loss: Callable[[Array, Array, Array], Array]
    scale: float | None
    beta: float | None

    def rewards(self, scores: Array, ref_log_probs: Array) -> Array:
        """Returns the implied rewards of messages `[..., D]`, up to a constant."""
        return scores if self.scale is None else self.scale * (scores - ref_log_probs)


def make_objectives(config: Config) -> dict[str, Objective]:
    """Returns all objectives by name.

    reward_model and ilhf are Luce's rule on rewards and on log pi. dpo_choice is Luce's rule on
    `beta (log pi - log p0)`: DPO for a choice among K (ours; at K = 2 it is DPO). dpo, ipo and slic
    see pairs: the chosen message against each other one, or every pair that the ranks order.

    Args:
      config: gives beta and delta.

    Returns:
      The objectives.
    """
    beta = config.beta
    dpo, ipo = partial(losses.dpo_loss, beta=beta), partial(losses.ipo_loss, beta=beta)
    slic = lambda chosen, rejected, *refs: losses.slic_loss(chosen, rejected, delta=config.delta)
    own = lambda scores, ref: scores
    log_ratio = lambda scores, ref: beta * (scores - ref)
    ilhf = (losses.ilhf_loss, losses.ilhf_ranking_loss)
    rewards = (losses.reward_model_loss, losses.reward_model_ranking_loss)
    return {
        "reward_model": Objective(*_listwise(*rewards, own), scale=None, beta=beta),
        "ilhf": Objective(*_listwise(*ilhf, own), scale=None, beta=None),
        "dpo_choice": Objective(*_listwise(*rewards, log_ratio), scale=beta, beta=beta),
        "dpo": Objective(*_pairwise(dpo), scale=beta, beta=beta),
        "ipo": Objective(*_pairwise(ipo), scale=beta, beta=beta),
        "slic": Objective(*_pairwise(slic), scale=None, beta=None),
    }


def _listwise(
    of_choice: Callable[[Array, Array], Array],
    of_ranks: Callable[[Array, Array], Array],
    utilities: Callable[[Array, Array], Array],
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    def choice_loss(scores: Array, ref: Array, choice: Array, valid: Array) -> Array:
        return of_choice(jnp.where(valid, utilities(scores, ref), -jnp.inf), choice)

    def ranks_loss(scores: Array, ref: Array, ranks: Array) -> Array:
        return of_ranks(utilities(scores, ref), ranks)

    return choice_loss, ranks_loss


def _pairwise(
    pair_loss: Callable[..., Array],
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    def choice_loss(scores: Array, ref: Array, choice: Array, valid: Array) -> Array:
        others = valid & (jnp.arange(len(valid)) != choice)
        chosen = lambda values: jnp.broadcast_to(values[choice], values.shape)
        return masked_mean(pair_loss(chosen(scores), scores, chosen(ref), ref), others)

    def ranks_loss(scores: Array, ref: Array, ranks: Array) -> Array:
        better = lambda values: jnp.repeat(values, len(ranks))
        worse = lambda values: jnp.tile(values, len(ranks))
        ordered = (better(ranks) >= 0) & (better(ranks) < worse(ranks))
        pairs = pair_loss(better(scores), worse(scores), better(ref), worse(ref))
        return masked_mean(pairs, ordered)

    return choice_loss, ranks_loss
