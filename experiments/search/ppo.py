"""The policy of the exact setting, trained by PPO in the place of RLOO."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.didactic import World
from experiments.posterior.base import Setup
from experiments.posterior.ppo import PPO
from experiments.posterior.problem import Problem as Posterior
from experiments.search.config import Settled
from experiments.search.problem import Problem, learned_reward
from shatter.types import Array, Key


def train_by_ppo(config: Settled, world: World, problem: Problem, key: Key) -> tuple[Array, Array]:
    """Trains a policy by PPO on the learned reward with the KL from the model, token by token.

    A step draws a batch and takes `PPO.epochs` gradient steps on it, so that as many tokens are
    sampled as by RLOO.

    Returns:
      As `experiments.search.problem.train_policy`.
    """
    tokens, mask = world.space
    log_p0 = world.log_probs(problem.params)
    posterior = Posterior(
        params=problem.params,
        log_p0=log_p0,
        rewards=learned_reward(config, problem, tokens, mask),
        beta=jnp.asarray(config.beta),
        log_target=jnp.zeros_like(log_p0),
        satisfied=jnp.zeros(log_p0.shape, bool),
    )
    setup = Setup(world, config.batch_size)
    optimizer = optax.adam(config.policy_rate)

    def step(carry: tuple[Any, Any], key: Key) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        batch = PPO.draw(setup, posterior, carry[0], (), key)

        def update(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            trainable, state = carry
            slope = jax.grad(lambda own: PPO.loss(setup, posterior, own, batch))(trainable)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(trainable, updates), state), None

        (trainable, state), _ = jax.lax.scan(update, carry, length=PPO.epochs)
        said = jnp.sum(mask[batch.indices])
        return (trainable, state), (world.log_probs(trainable.policy), said)

    start, _ = PPO.start(posterior)
    keys = jax.random.split(key, config.policy_steps)
    _, (laws, num_tokens) = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    laws = jnp.concatenate([log_p0[None], laws])
    return laws, jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(num_tokens)])
