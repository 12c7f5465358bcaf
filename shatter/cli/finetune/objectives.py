"""The objectives of fine-tuning: one table from a flag to functions of arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from shatter import losses
from shatter.cli.common.utilities import response_utility
from shatter.cli.finetune.config import Config
from shatter.numerics import masked_mean
from shatter.types import Array


class Scores(NamedTuple):
    """A model's scores of the K responses in each of B comparisons.

    Attributes:
      log_probs: `[B, K]`, summed over the response's tokens, EOS included, nats.
      lengths: int `[B, K]`, the number of those tokens.
      ref_log_probs: `[B, K]`, the log-probs under the frozen model, nats.
      rewards: `[B, K]`, the outputs of the reward head; 0 without one.
    """

    log_probs: Array
    lengths: Array
    ref_log_probs: Array
    rewards: Array


class Mean(NamedTuple):
    """A weighted mean as a sum and a weight, each of which adds up over batches.

    Attributes:
      total: `[]`, the weighted sum.
      weight: `[]`, the sum of the weights.
    """

    total: Array
    weight: Array


class Objective(NamedTuple):
    """An objective of fine-tuning.

    Attributes:
      losses: `(config, scores, ranks[B, K]) -> [B]`, the losses that are minimised.
      utilities: `(config, scores) -> [B, K]`, nats; by Luce's rule on them the model predicts
        choices.
    """

    losses: Callable[[Config, Scores, Array], Array]
    utilities: Callable[[Config, Scores], Array]


def implicit_rewards(config: Config, scores: Scores) -> Array:
    """Returns `beta (log pi - log p0)`, `[B, K]`, the reward that the model's policy implies."""
    return config.beta * (scores.log_probs - scores.ref_log_probs)


def _own_utilities(config: Config, scores: Scores) -> Array:
    return response_utility(
        config.utility,
        scores.log_probs,
        scores.ref_log_probs,
        scores.lengths,
        scale=config.utility_scale,
    )


def _ilhf(config: Config, scores: Scores, ranks: Array) -> Array:
    return losses.ilhf_ranking_loss(_own_utilities(config, scores), ranks)


def _over_pairs(pair_loss: Callable[[np.ndarray, np.ndarray], Array], ranks: Array) -> Array:
    """Returns the mean loss of each comparison's strictly ordered pairs; 0 if there are none.

    Args:
      pair_loss: `(better[P], worse[P]) -> [B, P]`, the loss of pairs of slots.
      ranks: int `[B, K]`.

    Returns:
      `[B]`.
    """
    better, worse = np.nonzero(~np.eye(ranks.shape[1], dtype=bool))
    shown = (ranks[:, better] >= 0) & (ranks[:, worse] >= 0)
    return masked_mean(pair_loss(better, worse), shown & (ranks[:, better] < ranks[:, worse]))


def _pair_log_probs(
    scores: Scores, better: np.ndarray, worse: np.ndarray
) -> tuple[Array, Array, Array, Array]:
    """Returns the log-probs of pairs, better and worse, under the model and the reference."""
    own, ref = scores.log_probs, scores.ref_log_probs
    return own[:, better], own[:, worse], ref[:, better], ref[:, worse]


def _dpo(config: Config, scores: Scores, ranks: Array) -> Array:
    beta, smoothing = config.beta, config.label_smoothing
    loss = lambda i, j: losses.dpo_loss(
        *_pair_log_probs(scores, i, j), beta=beta, label_smoothing=smoothing
    )
    return _over_pairs(loss, ranks)


def _ipo(config: Config, scores: Scores, ranks: Array) -> Array:
    loss = lambda i, j: losses.ipo_loss(*_pair_log_probs(scores, i, j), beta=config.beta)
    return _over_pairs(loss, ranks)


def _slic(config: Config, scores: Scores, ranks: Array) -> Array:
    loss = lambda i, j: losses.slic_loss(*_pair_log_probs(scores, i, j)[:2], delta=config.delta)
    return _over_pairs(loss, ranks)


def _sft(config: Config, scores: Scores, ranks: Array) -> Array:
    """Returns minus the mean log-prob of a token of the best completions, `[B]`."""
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
    "dpo": Objective(_dpo, implicit_rewards),
    "ipo": Objective(_ipo, implicit_rewards),
    "slic": Objective(_slic, _log_probs),
    "sft": Objective(_sft, _log_probs),
    "reward_model": Objective(_reward_model, _rewards),
}


def metrics(config: Config, scores: Scores, ranks: Array, weight: Array) -> dict[str, Mean]:
    """Computes means over comparisons with a best and a worst response, under TRL's names.

    If several responses of a comparison are best (worst), their mean is taken. Margins below 1e-4
    nats of log-prob are within the rounding of a sum of log-probs, so accuracies count them as 0.

    Args:
      config: the config.
      scores: the scores of the batch.
      ranks: int `[B, K]`.
      weight: `[B]`, the weight of each comparison.

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
