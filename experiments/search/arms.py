"""The arms of the exact setting: searches at a budget, and policies trained with its reward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.didactic import EOS, World
from experiments.search.config import BY_PPO, TRAINED, Settled
from experiments.search.ppo import train_by_ppo
from experiments.search.problem import (
    PROMPT,
    Problem,
    counts,
    draw_problem,
    gold_reward,
    learned_reward,
    least_squares,
    train_policy,
)
from experiments.search.searches import part_key, search_of
from shatter import evaluation, inference
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics

TRAINERS = {TRAINED: train_policy, BY_PPO: train_by_ppo}
"""How a policy is trained."""


def problems(config: Settled, world: World) -> Problem:
    """Returns the problems of all seeds, `[S]` on every leaf."""
    keys = jax.random.split(part_key(config, 0), config.num_seeds)
    draw = jax.vmap(partial(draw_problem, config, world))
    return jax.jit(draw, compiler_options=compiler_options())(keys)


def run_search(
    config: Settled, world: World, drawn: Problem, arm: str, budget: int
) -> dict[str, np.ndarray]:
    """Runs one search at one budget, all seeds and keys in one call.

    Args:
      config: the config.
      world: the documents.
      drawn: the problems, `[S]` on every leaf.
      arm: the search.
      budget: laws of a next token.

    Returns:
      Means over keys, `[S]`: the learned and the gold reward of the best response by the learned
      one, its log-prob under the model, and the laws that were needed.
    """

    def one(problem: Problem, key: Key) -> Metrics:
        reward = partial(learned_reward, config, problem)
        twist = inference.TwistModel(world.table, problem.twist)
        find = search_of(arm, beta=config.beta, twist=twist, top_k=config.vocab_size)
        found = find(
            world.table,
            problem.params,
            key,
            PROMPT,
            reward=reward,
            budget=budget,
            max_length=config.max_length,
            eos=EOS,
        )
        best = (found.tokens[found.best][None], found.mask[found.best][None])
        return {
            "learned": reward(*best)[0],
            "gold": gold_reward(config, world, problem, *best)[0],
            "log_prob": found.log_probs[found.best],
            "tokens": found.num_tokens.astype(float),
        }

    keys = jax.random.split(part_key(config, 1), (config.num_seeds, config.num_draws))
    lifted = jax.vmap(jax.vmap(one, in_axes=(None, 0)))
    metrics = jax.jit(lifted, compiler_options=compiler_options())(drawn, keys)
    return {name: np.asarray(values).mean(axis=1) for name, values in metrics.items()}


def run_training(
    config: Settled, world: World, drawn: Problem, arm: str = TRAINED
) -> dict[str, np.ndarray]:
    """Trains the policy of every seed.

    Args:
      config: the config.
      world: the documents.
      drawn: the problems, `[S]` on every leaf.
      arm: how it is trained.

    Returns:
      `[S, 1 + steps]`: the learned and the gold reward that it expects, its KL from the model, and
      the tokens that were sampled by then. `[S, budgets]`: "best_learned" and "best_gold", the
      exact rewards of the best of n of its samples, n those that a budget pays for.
    """

    def one(problem: Problem, key: Key) -> Metrics:
        laws, num_tokens = TRAINERS[arm](config, world, problem, key)
        learned, gold = rewards_of_all(config, world, problem)
        ref = world.log_probs(problem.params)
        shares = jnp.exp(laws)
        numbers = [budget // config.max_length for budget in config.budgets]
        of_best = [
            evaluation.best_of_n_log_probs(laws[-1], learned, num_samples=n) for n in numbers
        ]
        best = jnp.exp(jnp.stack(of_best))
        return {
            "learned": shares @ learned,
            "gold": shares @ gold,
            "kl": jnp.sum(shares * (laws - ref[None]), axis=1),
            "tokens": num_tokens.astype(float),
            "best_learned": best @ learned,
            "best_gold": best @ gold,
        }

    keys = jax.random.split(part_key(config, 2), config.num_seeds)
    metrics = jax.jit(jax.vmap(one), compiler_options=compiler_options())(drawn, keys)
    return {name: np.asarray(values) for name, values in metrics.items()}


def rewards_of_all(config: Settled, world: World, problem: Problem) -> tuple[Array, Array]:
    """Returns the learned and the gold reward of all documents, `[D]` each."""
    return (
        learned_reward(config, problem, *world.space),
        gold_reward(config, world, problem, *world.space),
    )


def frontier(
    config: Settled, world: World, drawn: Problem, betas: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes the optima of the learned reward at KL coefficients, which nothing can exceed.

    Args:
      config: the config.
      world: the documents.
      drawn: the problems, `[S]` on every leaf.
      betas: `[N]`.

    Returns:
      `[S, N]`: KL from the model, the learned reward, and the gold reward.
    """

    def one(problem: Problem) -> Metrics:
        learned, gold = rewards_of_all(config, world, problem)
        ref = world.log_probs(problem.params)
        kl, reward = evaluation.reward_kl_frontier(ref, learned, jnp.asarray(betas))
        law = lambda beta: evaluation.posterior_optimum(ref, learned, beta=beta)[0]
        laws = jax.vmap(law)(jnp.asarray(betas))
        return {"kl": kl, "learned": reward, "gold": jnp.exp(laws) @ gold}

    metrics = jax.jit(jax.vmap(one), compiler_options=compiler_options())(drawn)
    return {name: np.asarray(values) for name, values in metrics.items()}


def facts(config: Settled, world: World, drawn: Problem) -> dict[str, np.ndarray]:
    """Returns facts of every seed, `[S]`.

    How often the reward model is right, the variance of the gold reward, the share of it that no
    reward model can learn, and what the twist cost.
    """

    def one(problem: Problem) -> dict[str, Array]:
        learned, gold = rewards_of_all(config, world, problem)
        law = jnp.exp(world.log_probs(problem.params))
        difference = lambda values: values[:, None] - values[None, :]
        agree = (difference(learned) > 0) == (difference(gold) > 0)
        apart = (law[:, None] * law[None, :]) * ~jnp.eye(len(law), dtype=bool)
        variance = lambda values: law @ jnp.square(values - law @ values)
        features = counts(config, *world.space)
        rest = gold - features @ least_squares(law, features, gold)
        return {
            "accuracy": jnp.sum(apart * agree) / jnp.sum(apart),
            "gold_variance": variance(gold),
            "out_of_reach": variance(rest) / variance(gold),
            "twist_tokens": problem.twist_tokens.astype(float),
        }

    return {name: np.asarray(values) for name, values in jax.lax.map(one, drawn).items()}
