"""Losses of the objectives that learn from rewards of the model's own completions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter import losses
from shatter.cli.finetune import learning
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.objectives import Mean
from shatter.cli.finetune.pretrained import Pretrained
from shatter.cli.finetune.token_scores import policy_and_values
from shatter.cli.finetune.values import Estimates
from shatter.types import Array, Key

DIFFERENCES = "sampling/logp_differences"
"""The metric of how far log-probs of the sampler and of the forward pass of training differ."""


class PolicyBatch(NamedTuple):
    """N completions of each of B prompts, and their rewards.

    Attributes:
      tokens: int `[B, N, T]`.
      mask: bool `[B, N, T]`, true on the completion.
      valid: bool `[B, N, T]`, false on padding.
      log_probs: `[B, N, T]`, of the policy that drew them, nats; None = nothing reads them.
      ref_log_probs: `[B, N, T]`, of the reference, nats; None = nothing weighs them.
      rewards: `[B, N]`.
      deviations: `[B]`, by what grpo divides rewards less their mean.
      weight: `[B, N]`, each completion's share of the step's completions; 0 = it fills up a batch.
      token_weight: `[B, N]`, the weight of its tokens in the losses of grpo and ppo.
      drawn_log_probs: `[B, N]`, as the sampler computed them, nats; None = nothing is compared
        with them.
      estimates: of ppo's value function; None for the others.
    """

    tokens: Array
    mask: Array
    valid: Array
    log_probs: Array | None
    ref_log_probs: Array | None
    rewards: Array
    deviations: Array
    weight: Array
    token_weight: Array
    drawn_log_probs: Array | None = None
    estimates: Estimates | None = None


class Losses(NamedTuple):
    """Losses of completions `[B, N]`, their weights, and the ratios that were clipped.

    Attributes:
      losses: `[B, N]`.
      weight: `[B, N]`, with which they are summed to the loss.
      ratios: `[B, N]` or `[B, N, T]`, policy to the policy that drew; None = there is none.
      advantages: in the shape of `ratios`, or broadcastable to it.
      counted: bool in the shape of `ratios`, where there is one.
    """

    losses: Array
    weight: Array
    ratios: Array | None = None
    advantages: Array | None = None
    counted: Array | None = None


def _penalised(config: Config, log_probs: Array, batch: PolicyBatch) -> Array:
    """Returns rewards less `beta (log pi - log p0)` of the completion, `[B, N]`."""
    if batch.ref_log_probs is None:
        return batch.rewards
    log_ratio = jnp.sum(jax.lax.stop_gradient(log_probs) - batch.ref_log_probs, axis=-1)
    return batch.rewards - config.beta * log_ratio


def _drew(config: Config, log_probs: Array, batch: PolicyBatch) -> Array:
    """Returns the log-probs of the policy that drew, `[B, N, T]`: in an only update its own."""
    if config.num_iterations == 1:
        return jax.lax.stop_gradient(log_probs)
    assert batch.log_probs is not None
    return batch.log_probs


def _reference(log_probs: Array, batch: PolicyBatch) -> Array:
    """Returns the reference's log-probs, `[B, N, T]`; the policy's where nothing weighs them."""
    if batch.ref_log_probs is None:
        return jax.lax.stop_gradient(log_probs)
    return batch.ref_log_probs


def _others_mean(values: Array) -> Array:
    """Returns the mean of the other values of each row, `[B, N]`; 0 if there are none."""
    num_others = values.shape[-1] - 1
    return (
        (jnp.sum(values, axis=-1, keepdims=True) - values) / max(num_others, 1) * min(num_others, 1)
    )


def _rloo(config: Config, log_probs: Array, batch: PolicyBatch) -> Losses:
    """Returns PPO's surrogate of documents with the leave-one-out advantage."""
    old = _drew(config, log_probs, batch)
    gains = _penalised(config, old, batch)
    advantages = gains - _others_mean(gains)
    own, before = jnp.sum(log_probs, axis=-1), jnp.sum(old, axis=-1)
    found = losses.grpo_loss(
        own[..., None],
        before[..., None],
        before[..., None],
        advantages,
        jnp.ones((*own.shape, 1), bool),
        beta=0.0,
        clip=config.epsilon,
        clip_high=config.epsilon_high,
    )
    return Losses(
        found, batch.weight, jnp.exp(own - before), advantages, jnp.any(batch.mask, axis=-1)
    )


def _grpo(config: Config, log_probs: Array, batch: PolicyBatch) -> Losses:
    """Returns GRPO's loss, whose KL penalty is at every token."""
    old = _drew(config, log_probs, batch)
    if config.scale_rewards == "none":
        advantages = batch.rewards - jnp.mean(batch.rewards, axis=-1, keepdims=True)
    else:
        advantages = losses.grpo_advantages(batch.rewards, batch.deviations[:, None])
    found = losses.grpo_loss(
        log_probs,
        old,
        _reference(log_probs, batch),
        advantages,
        batch.mask,
        beta=config.beta,
        clip=config.epsilon,
        clip_high=config.epsilon_high,
    )
    ratios = jnp.exp(log_probs - old)
    return Losses(found, batch.token_weight, ratios, advantages[..., None], batch.mask)


def _ppo(config: Config, log_probs: Array, batch: PolicyBatch) -> Losses:
    """Returns PPO's surrogate of tokens, whose rewards have the KL penalty in them."""
    assert batch.estimates is not None
    old = _drew(config, log_probs, batch)
    advantages = batch.estimates.advantages
    found = losses.ppo_loss(log_probs, old, advantages, batch.mask, clip=config.epsilon)
    return Losses(found, batch.token_weight, jnp.exp(log_probs - old), advantages, batch.mask)


def _posterior(config: Config, log_probs: Array, batch: PolicyBatch) -> Losses:
    """Returns minus the KL-regularised objective, with rewards-to-go and the others as baseline.

    The mean gain of the other completions is taken from the reward and from the loss, so that the
    loss is that of `losses.token_posterior_loss` and its gradient has less variance.
    """
    assert batch.ref_log_probs is not None  # because beta is not 0
    baselines = _others_mean(_penalised(config, log_probs, batch))
    found = losses.token_posterior_loss(
        log_probs, batch.ref_log_probs, batch.rewards - baselines, batch.mask, beta=config.beta
    )
    return Losses(found - baselines, batch.weight)


OBJECTIVES: dict[str, Callable[[Config, Array, PolicyBatch], Losses]] = {
    "rloo": _rloo,
    "grpo": _grpo,
    "ppo": _ppo,
    "posterior": _posterior,
}


def make_objective(
    config: Config, model: Pretrained
) -> Callable[..., tuple[Array, dict[str, Any]]]:
    """Binds an objective to the model.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, frozen, key, batch) -> (loss, metrics)`, of which those of a step's batches add
      up. "kl" is the batch's part of the mean of log pi - log p0, nats a completion; it is absent
      where there is no reference. `DIFFERENCES` are of every completion, `[B, N]`, nats.
    """

    def objective(
        trainable: Trainable, frozen: Frozen, key: Key, batch: PolicyBatch
    ) -> tuple[Array, dict[str, Any]]:
        del key
        params = learning.assemble(model, trainable, frozen.params)
        log_probs, values = policy_and_values(
            model,
            params,
            trainable.head,
            batch.tokens,
            batch.mask,
            batch.valid,
            config.temperature,
        )
        found = OBJECTIVES[config.objective](config, log_probs, batch)
        loss = jnp.sum(found.weight * found.losses)
        lengths = jnp.sum(batch.mask, axis=-1)
        metrics: dict[str, Any] = {}
        if batch.estimates is not None:
            assert values is not None
            value_loss, of_values = value_part(config, values, batch)
            metrics |= of_values | _of_policy(log_probs, loss, batch)
            loss += config.vf_coef * value_loss
        metrics |= {
            "objective": Mean(loss, jnp.sum(batch.weight)),
            "entropy": Mean(
                -jnp.sum(batch.weight * jnp.sum(log_probs, axis=-1)),
                jnp.sum(batch.weight * lengths),
            ),
        }
        if batch.ref_log_probs is not None:
            log_ratio = jnp.sum(log_probs - batch.ref_log_probs, axis=-1)
            metrics["kl"] = jnp.sum(batch.weight * log_ratio) / config.num_iterations
        if batch.drawn_log_probs is not None:
            gap = jnp.abs(jnp.sum(log_probs, axis=-1) - batch.drawn_log_probs)
            metrics[DIFFERENCES] = jnp.where(batch.weight > 0, gap, 0.0)
        return loss, metrics | _clip_ratios(config, found, batch.weight)

    return objective


def _of_policy(log_probs: Array, loss: Array, batch: PolicyBatch) -> dict[str, Mean]:
    """Returns the policy's own loss and half its squared log-ratio, under TRL's names for PPO."""
    counted = jnp.where(batch.mask, batch.weight[..., None], 0.0)
    assert batch.log_probs is not None
    squares = jnp.square(log_probs - batch.log_probs)
    return {
        "loss/policy_avg": Mean(loss, jnp.sum(batch.weight)),
        "policy/approxkl_avg": Mean(0.5 * jnp.sum(counted * squares), jnp.sum(counted)),
    }


def value_part(config: Config, values: Array, batch: PolicyBatch) -> tuple[Array, dict[str, Mean]]:
    """Returns a batch's part of the value function's loss, a mean over the step's tokens.

    Args:
      config: the config.
      values: `[B, N, T]`, of the value function that learns.
      batch: the batch, with estimates.

    Returns:
      The loss `[]`, half a squared error, and metrics under TRL's names for PPO.
    """
    assert batch.estimates is not None
    _, old, targets = batch.estimates
    found = losses.value_loss(
        values, targets, batch.mask, old_values=old, clip=config.cliprange_value
    )
    near = jnp.clip(values, old - config.cliprange_value, old + config.cliprange_value)
    is_clipped = jnp.square(near - targets) > jnp.square(values - targets)
    counted = jnp.where(batch.mask, batch.weight[..., None], 0.0)
    loss = jnp.sum(batch.token_weight * found)
    return loss, {
        "loss/value_avg": Mean(loss, jnp.sum(batch.weight)),
        "val/clipfrac_avg": Mean(jnp.sum(counted * is_clipped), jnp.sum(counted)),
    }


def _clip_ratios(config: Config, found: Losses, weight: Array) -> dict[str, Mean]:
    """Returns the shares of ratios from which no gradient passes, under TRL's names."""
    if found.ratios is None or found.advantages is None or found.counted is None:
        return {}
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    is_low = (found.ratios < 1 - config.epsilon) & (found.advantages < 0)
    is_high = (found.ratios > 1 + high) & (found.advantages > 0)
    weight = weight.reshape(weight.shape + (1,) * (found.ratios.ndim - weight.ndim))
    counted = jnp.where(found.counted, weight, 0.0)
    mean = lambda values: Mean(jnp.sum(counted * values), jnp.sum(counted))
    return {
        "clip_ratio/low_mean": mean(is_low),
        "clip_ratio/high_mean": mean(is_high),
        "clip_ratio/region_mean": mean(is_low | is_high),
    }
