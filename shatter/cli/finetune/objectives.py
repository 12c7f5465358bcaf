"""The objectives of fine-tuning: one table from a flag to functions of arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from shatter import losses
from shatter.cli.finetune.config import Config
from shatter.numerics import masked_mean
from shatter.types import Array


class Scores(NamedTuple):
    """What a model says of B comparisons of K responses.

    Attributes:
      log_probs: `[B, K]`, summed over the response's tokens, EOS included, nats.
      lengths: int `[B, K]`, those tokens.
      ref_log_probs: `[B, K]`, the frozen model's.
      rewards: `[B, K]`, of the reward head; 0 without one.
    """

    log_probs: Array
    lengths: Array
    ref_log_probs: Array
    rewards: Array


class Mean(NamedTuple):
    """A weighted mean in two parts, which add up over batches; without weight there is no mean.

    Attributes:
      total: `[]`, the weighted sum.
      weight: `[]`, the sum of the weights.
    """

    total: Array
    weight: Array


class Objective(NamedTuple):
    """What is minimised, and what it means for choices.

    Attributes:
      losses: `(config, scores, ranks[B, K]) -> [B]`.
      utilities: `(config, scores) -> [B, K]`: choices are by Luce's rule on them, nats.
      has_reference: whether the loss reads the frozen model's log-probs.
    """

    losses: Callable[[Config, Scores, Array], Array]
    utilities: Callable[[Config, Scores], Array]
    has_reference: bool = False


def implicit_rewards(config: Config, scores: Scores) -> Array:
    """`beta (log pi - log p0)`, `[B, K]`: the reward that a direct method's model implies."""
    return config.beta * (scores.log_probs - scores.ref_log_probs)


def _own_utilities(config: Config, scores: Scores) -> Array:
    if config.utility == "sum":
        return scores.log_probs
    return config.utility_scale * scores.log_probs / scores.lengths


def _ilhf(config: Config, scores: Scores, ranks: Array) -> Array:
    return losses.ilhf_ranking_loss(_own_utilities(config, scores), ranks)


def _over_pairs(pair_loss: Callable[[np.ndarray, np.ndarray], Array], ranks: Array) -> Array:
    """The mean over a comparison's strictly ordered pairs; 0 where there is none.

    Args:
      pair_loss: `(better[P], worse[P]) -> [B, P]`, of slots.
      ranks: int `[B, K]`.

    Returns:
      `[B]`.
    """
    better, worse = np.nonzero(~np.eye(ranks.shape[1], dtype=bool))
    shown = (ranks[:, better] >= 0) & (ranks[:, worse] >= 0)
    return masked_mean(pair_loss(better, worse), shown & (ranks[:, better] < ranks[:, worse]))


def _four(
    scores: Scores, better: np.ndarray, worse: np.ndarray
) -> tuple[Array, Array, Array, Array]:
    own, ref = scores.log_probs, scores.ref_log_probs
    return own[:, better], own[:, worse], ref[:, better], ref[:, worse]


def _dpo(config: Config, scores: Scores, ranks: Array) -> Array:
    beta, smoothing = config.beta, config.label_smoothing
    loss = lambda i, j: losses.dpo_loss(*_four(scores, i, j), beta=beta, label_smoothing=smoothing)
    return _over_pairs(loss, ranks)


def _ipo(config: Config, scores: Scores, ranks: Array) -> Array:
    loss = lambda i, j: losses.ipo_loss(*_four(scores, i, j), beta=config.beta)
    return _over_pairs(loss, ranks)


def _slic(config: Config, scores: Scores, ranks: Array) -> Array:
    loss = lambda i, j: losses.slic_loss(*_four(scores, i, j)[:2], delta=config.delta)
    return _over_pairs(loss, ranks)


def _sft(config: Config, scores: Scores, ranks: Array) -> Array:
    """Minus the mean log-prob of a token of the best completions."""
    del config
    shown = jnp.where(ranks >= 0, ranks, jnp.iinfo(ranks.dtype).max)
    best = (ranks >= 0) & (shown == jnp.min(shown, axis=1, keepdims=True))
    return masked_mean(-scores.log_probs / scores.lengths, best)


def _reward_model(config: Config, scores: Scores, ranks: Array) -> Array:
    del config
    return losses.reward_model_ranking_loss(scores.rewards, ranks)


def _log_probs(config: Config, scores: Scores) -> Array:
    del config
    return scores.log_probs


def _rewards(config: Config, scores: Scores) -> Array:
    del config
    return scores.rewards


OBJECTIVES: dict[str, Objective] = {
    "ilhf": Objective(_ilhf, _own_utilities),
    "dpo": Objective(_dpo, implicit_rewards, has_reference=True),
    "ipo": Objective(_ipo, implicit_rewards, has_reference=True),
    "slic": Objective(_slic, _log_probs),
    "sft": Objective(_sft, _log_probs),
    "reward_model": Objective(_reward_model, _rewards),
}


def metrics(config: Config, scores: Scores, ranks: Array, weight: Array) -> dict[str, Mean]:
    """Means over comparisons with a best and a worst response, under the names that TRL has.

    Where a comparison has several best (worst) ones, their mean is taken. A margin within the
    rounding of a sum of log-probs (1e-4 nats) is none: accuracies count it as 0.

    Args:
      config: the config.
      scores: of the batch.
      ranks: int `[B, K]`.
      weight: `[B]`.

    Returns:
      Means by name.
    """
    shown = ranks >= 0
    top = jnp.min(jnp.where(shown, ranks, jnp.iinfo(ranks.dtype).max), axis=1, keepdims=True)
    bottom = jnp.max(jnp.where(shown, ranks, -1), axis=1, keepdims=True)
    best, worst = shown & (ranks == top), shown & (ranks == bottom)
    weight = jnp.where(jnp.squeeze(bottom > top, axis=1), weight, 0.0)
    mean = lambda values: Mean(jnp.sum(weight * values), jnp.sum(weight))
    is_reward_model = config.objective == "reward_model"
    rewards = scores.rewards if is_reward_model else implicit_rewards(config, scores)
    chosen, rejected = masked_mean(rewards, best), masked_mean(rewards, worst)
    threshold = 1e-4 if is_reward_model else 1e-4 * config.beta
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(chosen - rejected),
        "rewards/accuracies": mean((chosen - rejected > threshold).astype(chosen.dtype)),
        "logps/chosen": mean(masked_mean(scores.log_probs, best)),
        "logps/rejected": mean(masked_mean(scores.log_probs, worst)),
    }
