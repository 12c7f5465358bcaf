"""The losses of the pipeline: the reward model's, and PPO's on whole responses as actions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.rlhf.domains import Problem
from experiments.rlhf.objectives import compared
from shatter import losses
from shatter.types import Array, Key

PPO_EPOCHS = 4
VALUE_COEFFICIENT = 0.1


def reward_loss(problem: Problem, rewards: Array, batch: Array) -> Array:
    """Returns the loss `[]` of a reward model that is a table `[P, D]`, on comparisons `[B]`."""
    pair = jnp.stack(compared(problem, rewards, batch), axis=-1)
    return jnp.mean(losses.reward_model_loss(pair, jnp.zeros(batch.shape, int)))


class Rollout(NamedTuple):
    """Samples of the policy, `[B]` each, whole responses as actions.

    Attributes:
      prompts: int.
      responses: int.
      log_probs: as drawn, nats.
      advantages: whitened.
      targets: of the value function.
      kl: estimate of KL(policy || pretrained), `[]`.
    """

    prompts: Array
    responses: Array
    log_probs: Array
    advantages: Array
    targets: Array
    kl: Array


def roll_out(
    key: Key, problem: Problem, log_probs: Array, values: Array, rewards: Array, beta: Array,
    batch_size: int,
) -> Rollout:  # fmt: skip
    """Draws responses to uniform prompts, and computes their advantages under the learned reward.

    Args:
      key: a typed key.
      problem: the problem.
      log_probs: `[P, D]`, of the policy.
      values: `[P]`, of every prompt.
      rewards: `[P, D]`, learned.
      beta: `[]`, KL coefficient.
      batch_size: B.

    Returns:
      The samples.
    """
    prompt_key, response_key = jax.random.split(key)
    prompts = jax.random.randint(prompt_key, (batch_size,), 0, len(log_probs))
    responses = jax.random.categorical(response_key, log_probs[prompts])
    drawn = log_probs[prompts, responses]
    ref = problem.log_p0[prompts, responses]
    one_token = jnp.ones((batch_size, 1), bool)
    scores = rewards[prompts, responses]
    penalised = losses.kl_penalised_rewards(
        drawn[:, None], ref[:, None], scores, one_token, beta=beta
    )
    expected = values[prompts][:, None]
    advantages = losses.generalised_advantages(penalised, expected, one_token)
    return Rollout(
        prompts,
        responses,
        drawn,
        losses.whiten(advantages, one_token)[:, 0],
        (advantages + expected)[:, 0],
        jnp.mean(losses.kl_k1(drawn, ref)),
    )


def policy_loss(log_probs: Array, values: Array, rollout: Rollout) -> Array:
    """Returns PPO's clipped surrogate plus the loss of the value function.

    Args:
      log_probs: `[P, D]`, of the policy.
      values: `[P]`, of every prompt.
      rollout: the samples.

    Returns:
      `[]`.
    """
    one_token = jnp.ones((len(rollout.prompts), 1), bool)
    now = log_probs[rollout.prompts, rollout.responses][:, None]
    surrogate = losses.ppo_loss(
        now, rollout.log_probs[:, None], rollout.advantages[:, None], one_token
    )
    value = losses.value_loss(values[rollout.prompts][:, None], rollout.targets[:, None], one_token)
    return jnp.mean(surrogate + VALUE_COEFFICIENT * value)
