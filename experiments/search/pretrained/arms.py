"""The arms on a pretrained model: searches at a budget, and a policy trained by RLOO."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.search.config import LAWS_A_TOKEN, Settled
from experiments.search.pretrained.problem import Problem, draw_problem
from experiments.search.pretrained.rewards import NAMES, of_samples, reward
from experiments.search.pretrained.value import value_model
from experiments.search.pretrained.world import Fixed, World, sample, valid_tokens
from experiments.search.searches import part_key, search_of
from shatter import documents, inference, losses, models
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics, Params

TARGETS = ("query", "value", "mlp_out")
NUM_EVALUATED = 64
"""Samples of the trained policy for every prompt, by which it is measured at the end."""

ONCE = (*LAWS_A_TOKEN, "beam", "beam_by_value")
"""The arms that search once for every prompt: trees take longest, and beams draw nothing."""


def problems(world: World, fixed: Fixed) -> Problem:
    """Returns the problems of all seeds, `[S]` on every leaf, drawn one after another."""
    keys = jax.random.split(part_key(world.config, 0), world.config.num_seeds)
    return jax.lax.map(partial(draw_problem, world, fixed), keys)


def run_search(
    world: World,
    fixed: Fixed,
    drawn: Problem,
    arm: str,
    budget: int,
    adapters: Params | None = None,
) -> dict[str, np.ndarray]:
    """Runs one search at one budget, all seeds in one call, one after another.

    Args:
      world: the world.
      fixed: its arrays.
      drawn: the problems, `[S]` on every leaf.
      arm: the search.
      budget: laws of a next token.
      adapters: of every seed's trained policy, `[S]` on every leaf, which is then searched in the
        place of the model; None = the model.

    Returns:
      Means over prompts and keys, `[S]`: the learned and the gold reward of the best response by
      the learned one, its log-prob under the model that was searched, and the laws that were
      needed. "best": int `[S, P, T]`, the response that the first search of every prompt found.
    """
    config = world.config

    def of_seed(fixed: Fixed, row: tuple) -> Metrics:
        problem, key, own = row
        params = fixed.params if own is None else models.with_lora(fixed.params, own, _lora(config))
        find = partial(_search, world, fixed, problem, params, arm, budget)
        number = 1 if arm in ONCE else config.num_draws
        places = jnp.repeat(jnp.arange(config.num_prompts), number)
        keys = jax.random.split(key, len(places))
        # Lanes that are vmapped compute the reward at every node of a tree.
        if arm in LAWS_A_TOKEN:
            found = jax.lax.map(lambda lane: find(*lane), (places, keys))
        else:
            found = jax.vmap(find)(places, keys)
        means = {name: jnp.mean(v) for name, v in found.items() if name != "best"}
        return means | {"best": found["best"][::number]}

    keys = jax.random.split(part_key(config, 1), config.num_seeds)
    every = lambda fixed, rows: jax.lax.map(partial(of_seed, fixed), rows)
    program = jax.jit(every, compiler_options=compiler_options())
    return jax.tree.map(np.asarray, program(fixed, (drawn, keys, adapters)))


def _search(
    world: World,
    fixed: Fixed,
    problem: Problem,
    params: Params,
    arm: str,
    budget: int,
    place: Array,
    key: Key,
) -> Metrics:
    """Runs one search for one of the seed's prompts."""
    config = world.config
    values = (fixed.params, problem.value)
    twist = inference.TwistModel(value_model(world), values, 1.0 / config.beta)
    # If a tree considered as many tokens as it has simulations, each would go to another child of
    # the root, whose value the twist tells already.
    considered = max(2, math.isqrt(budget // config.max_length))
    find = search_of(
        arm, beta=config.beta, twist=twist, top_k=config.num_actions, num_considered=considered
    )
    prompt_id = problem.rewards.prompt_ids[place]
    of_texts = {name: partial(reward, world, fixed, problem.rewards, name, place) for name in NAMES}
    found = find(
        world.lm,
        params,
        key,
        fixed.prompts[prompt_id],
        reward=of_texts["learned"],
        budget=budget,
        max_length=config.max_length,
        eos=world.eos,
        valid=fixed.valid[prompt_id],
    )
    tokens, mask = found.tokens[found.best], found.mask[found.best]
    return {
        "learned": found.rewards[found.best],
        "gold": of_texts["gold"](tokens[None], mask[None])[0],
        "log_prob": found.log_probs[found.best],
        "tokens": found.num_tokens.astype(float),
        "best": jnp.where(mask, tokens, -1)[world.prompt_length :],
    }


def _lora(config: Settled) -> models.LoraConfig:
    return models.LoraConfig(rank=config.rank, alpha=float(config.rank), targets=TARGETS)


def run_training(
    world: World, fixed: Fixed, drawn: Problem
) -> tuple[dict[str, np.ndarray], Params]:
    """Trains the policy of every seed by RLOO on the learned reward less beta KL(policy || model).

    Args:
      world: the world.
      fixed: its arrays.
      drawn: the problems, `[S]` on every leaf.

    Returns:
      `[S, 1 + steps]`: the learned and the gold reward and the KL from the model, means over the
      samples of each step and in the last column over `NUM_EVALUATED` for every prompt, and the
      tokens that were sampled before. And the adapters, `[S]` on every leaf.
    """
    config = world.config
    optimizer = optax.adam(config.policy_rate)

    def of_seed(fixed: Fixed, row: tuple[Problem, Key]) -> tuple[Metrics, Params]:
        problem, key = row
        init_key, learn_key, last_key = jax.random.split(key, 3)
        start = models.init_lora(init_key, fixed.params, _lora(config))
        number = max(2, config.batch_size // config.num_prompts)

        def step(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Metrics]:
            own, state = carry
            slope, measured = jax.grad(loss, has_aux=True)(own, key, number)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(own, updates), state), measured

        def loss(own: Params, key: Key, number: int) -> tuple[Array, Metrics]:
            return policy_loss(world, fixed, problem, own, key, number)

        keys = jax.random.split(learn_key, config.policy_steps)
        (own, _), measured = jax.lax.scan(step, (start, optimizer.init(start)), keys)
        last = loss(own, last_key, NUM_EVALUATED)[1]
        spent = jnp.concatenate([jnp.zeros(1), jnp.cumsum(measured.pop("tokens"))])
        del last["tokens"]
        joined = {name: jnp.append(measured[name], last[name]) for name in last}
        return joined | {"tokens": spent}, own

    keys = jax.random.split(part_key(config, 2), config.num_seeds)
    every = lambda fixed, rows: jax.lax.map(partial(of_seed, fixed), rows)
    program = jax.jit(every, compiler_options=compiler_options())
    metrics, adapters = program(fixed, (drawn, keys))
    return jax.tree.map(np.asarray, metrics), adapters


def policy_loss(
    world: World, fixed: Fixed, problem: Problem, own: Params, key: Key, number: int
) -> tuple[Array, Metrics]:
    """Returns the loss of RLOO on fresh samples of a policy, and what the samples say.

    Args:
      world: the world.
      fixed: its arrays.
      problem: the seed's.
      own: the policy's adapters.
      key: a typed key.
      number: samples for every prompt, at least 2.

    Returns:
      The loss, `[]`, and means over the samples, with the number of their tokens.
    """
    rewards, config = problem.rewards, world.config
    ids = rewards.prompt_ids
    policy = models.with_lora(fixed.params, own, _lora(config))
    frozen = jax.lax.stop_gradient(policy)
    drawn = sample(world, frozen, key, fixed.prompts[ids], fixed.valid[ids], number)
    valid = jax.vmap(partial(valid_tokens, world))(fixed.valid[ids], drawn.tokens)
    score = partial(documents.document_log_probs, world.lm, valid=valid)
    log_probs = score(policy, drawn.tokens, drawn.mask)
    ref = score(fixed.params, drawn.tokens, drawn.mask)
    learned, gold = (of_samples(world, fixed, rewards, name, drawn) for name in NAMES)
    gains = learned - config.beta * (log_probs - ref)
    measured = {
        "learned": jnp.mean(learned),
        "gold": jnp.mean(gold),
        "kl": jnp.mean(log_probs - ref),
        "tokens": jnp.sum(drawn.mask).astype(float),
    }
    return jnp.mean(losses.rloo_loss(log_probs, gains)), jax.lax.stop_gradient(measured)
