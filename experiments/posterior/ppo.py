"""PPO by tokens; the value function is a second copy of the model, whose logit 0 is the value."""

from typing import NamedTuple

import jax.numpy as jnp

from experiments.common.didactic import World
from experiments.posterior.base import Method, Setup, draw_from_policy, policy_tokens
from experiments.posterior.problem import Problem
from shatter import losses
from shatter.types import Array, Key, Params

VALUE_COEFFICIENT = 0.1
EPOCHS = 4


class ActorCritic(NamedTuple):
    """The parameters of the policy and of the value function."""

    policy: Params
    value: Params


class PpoBatch(NamedTuple):
    """Samples of the policy.

    Attributes:
      indices: int `[B]`, which documents.
      log_probs: `[B, T]`, of the tokens, as drawn, nats.
      advantages: `[B, T]`, whitened.
      targets: `[B, T]`, of the value function.
    """

    indices: Array
    log_probs: Array
    advantages: Array
    targets: Array


def _values(world: World, params: Params) -> Array:
    """Returns the value of the state in which each token is chosen, `[D, T]`."""
    return jnp.pad(world.lm.apply(params, world.space[0])[:, :-1, 0], ((0, 0), (1, 0)))


def _start(problem: Problem) -> tuple[ActorCritic, tuple[()]]:
    return ActorCritic(problem.params, problem.params), ()


def _draw(
    setup: Setup, problem: Problem, trainable: ActorCritic, memory: tuple[()], key: Key
) -> PpoBatch:
    indices = draw_from_policy(setup, problem, trainable, memory, key)
    mask = setup.world.space[1][indices]
    log_probs = policy_tokens(setup.world, trainable.policy)[indices]
    rewards = losses.kl_penalised_rewards(
        log_probs,
        policy_tokens(setup.world, problem.params)[indices],
        problem.rewards[indices],
        mask,
        beta=problem.beta,
    )
    values = _values(setup.world, trainable.value)[indices]
    advantages = losses.generalised_advantages(rewards, values, mask)
    return PpoBatch(indices, log_probs, losses.whiten(advantages, mask), advantages + values)


def _loss(setup: Setup, problem: Problem, trainable: ActorCritic, batch: PpoBatch) -> Array:
    del problem
    mask = setup.world.space[1][batch.indices]
    log_probs = policy_tokens(setup.world, trainable.policy)[batch.indices]
    surrogate = losses.ppo_loss(log_probs, batch.log_probs, batch.advantages, mask)
    values = _values(setup.world, trainable.value)[batch.indices]
    value = losses.value_loss(values, batch.targets, mask)
    return jnp.mean(surrogate + VALUE_COEFFICIENT * value)


PPO = Method(_draw, _loss, _start, epochs=EPOCHS)
