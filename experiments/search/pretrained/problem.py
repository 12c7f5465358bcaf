"""What a seed draws once: prompts, the gold reward, a reward model and a twist that learn."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.search.pretrained.rewards import (
    NAMES,
    Rewards,
    Seen,
    deviation,
    of_samples,
    pooled,
    raw_of_samples,
    scripted,
)
from experiments.search.pretrained.value import Value, fit_value, ridge, states
from experiments.search.pretrained.world import Fixed, World, embeddings, features, sample
from shatter import choice, ensembles
from shatter.numerics import masked_mean
from shatter.types import Array, Key, Metrics

ROWS_A_FEATURE = 32
"""Samples by which it is found what is out of reach, so that noise in the fit is 1/32 of it."""

_RIDGE = 1e-5  # of that regression, per sample


class Problem(NamedTuple):
    """What a seed draws once.

    Attributes:
      rewards: the seed's rewards.
      value: the twist's parameters.
      facts: numbers about the seed, `[]` each: see `agreement`, `out_of_reach` and `fit_value`.
    """

    rewards: Rewards
    value: Value
    facts: Metrics


def draw_problem(world: World, fixed: Fixed, key: Key) -> Problem:
    """Draws prompts and a gold reward, and learns the reward model and the twist.

    Args:
      world: the world.
      fixed: its arrays.
      key: the seed's.

    Returns:
      The problem.
    """
    config = world.config
    keys = jax.random.split(key, 7)
    prompt_key, taste_key, base_key, learn_key, draw_key, value_key, reach_key = keys
    ids = jax.random.permutation(prompt_key, len(fixed.prompts))[: config.num_prompts]
    draw = partial(_draw, world, fixed, ids)
    base = draw(base_key, config.num_base_samples)
    rewards = _begin(world, ids, taste_key, base)
    if not world.judges:
        rewards = rewards._replace(head=_learn_head(world, fixed, rewards, draw, learn_key))
    rewards = _settle_scales(world, fixed, rewards, base)
    drawn = draw(draw_key, config.num_base_samples)
    value, explained = _learn_value(world, fixed, rewards, drawn, value_key)
    facts = agreement(*(of_samples(world, fixed, rewards, name, base) for name in NAMES)) | {
        "twist_explains": explained,
        "twist_tokens": jnp.sum(drawn.mask).astype(float),
    }
    if not world.judges:
        facts["out_of_reach"] = out_of_reach(world, fixed, rewards, base, draw, reach_key)
    return Problem(rewards, value, facts)


def _begin(world: World, ids: Array, key: Key, base: Seen) -> Rewards:
    """Returns rewards whose head knows nothing; the scripted gold reward has variance 1."""
    config = world.config
    found, said = base.found.reshape(-1, base.found.shape[-1]), base.mask.reshape(-1, 1)
    centre = masked_mean(found, said, axis=0)
    spread = masked_mean(jnp.square(found - centre[None]), said, axis=0)
    rewards = Rewards(
        prompt_ids=ids,
        tastes=jnp.zeros(len(world.words)),
        dislike=jnp.zeros(()),
        feature_centre=centre,
        feature_width=jnp.sqrt(jnp.maximum(spread, 1e-12)),
        head=jnp.zeros_like(centre),
        centres=jnp.zeros((len(NAMES), len(ids))),
        scales=jnp.ones(len(NAMES)),
    )
    if world.judges:
        return rewards
    parts = jax.vmap(partial(scripted, world))(base.tokens, base.mask)  # [P, N, W + 1]
    drawn = jax.random.normal(key, (len(world.words),))
    share = jnp.sqrt(jnp.array([1.0 - config.misfit, config.misfit]))
    tastes = share[0] * drawn / jnp.maximum(deviation(parts[..., :-1] @ drawn), 1e-6)
    dislike = share[1] / jnp.maximum(deviation(parts[..., -1]), 1e-6)
    return rewards._replace(tastes=tastes, dislike=dislike)


def _draw(world: World, fixed: Fixed, ids: Array, key: Key, number: int) -> Seen:
    """Returns `number` samples of the model for every prompt, read once."""
    drawn = sample(world, fixed.params, key, fixed.prompts[ids], fixed.valid[ids], number)
    of_prompt = lambda row: features(world, fixed.params, fixed.valid[row[0]], row[1])
    found = jax.lax.map(of_prompt, (ids, drawn.tokens))
    return Seen(drawn.tokens, drawn.mask, found)


def _learn_head(
    world: World,
    fixed: Fixed,
    rewards: Rewards,
    draw: Callable[[Key, int], Seen],
    key: Key,
) -> Array:
    """Returns the head of a reward model, from choices by the gold reward between samples."""
    ask_key, answer_key = jax.random.split(key)
    number = -(-world.config.num_comparisons // world.config.num_prompts)
    drawn = draw(ask_key, 2 * number)
    gold = of_samples(world, fixed, rewards, "gold", drawn)
    ids = rewards.prompt_ids
    found = pooled(rewards, drawn.found, drawn.mask)
    # [P, 2 n] -> [P n, 2], of which the first `num_comparisons` are asked, prompts taking turns.
    pairs = lambda leaf: jnp.swapaxes(
        leaf.reshape(len(ids), number, 2, *leaf.shape[2:]), 0, 1
    ).reshape(-1, 2, *leaf.shape[2:])[: world.config.num_comparisons]
    gold, found = pairs(gold), pairs(found)
    chosen = choice.luce_sample(answer_key, gold)
    # So that rewards of samples differ by about 1 before there is data.
    scale = 1.0 / jnp.sqrt(jnp.sum(jnp.var(found.reshape(-1, found.shape[-1]), axis=0)))
    return ensembles.fit_laplace(found, jax.nn.one_hot(chosen, 2), prior_scale=scale).mean


def _settle_scales(world: World, fixed: Fixed, rewards: Rewards, base: Seen) -> Rewards:
    """Returns the rewards with mean 0 for every prompt and deviation 1 within prompts."""
    raw = [raw_of_samples(world, fixed, rewards, number, base) for number in range(len(NAMES))]
    scales = jnp.maximum(jnp.stack([deviation(values) for values in raw]), 1e-6)
    return rewards._replace(centres=jnp.mean(jnp.stack(raw), axis=2), scales=scales)


def _learn_value(
    world: World, fixed: Fixed, rewards: Rewards, drawn: Seen, key: Key
) -> tuple[Value, Array]:
    """Returns the value of the learned reward, and the share of its variance that it explains."""
    learned = of_samples(world, fixed, rewards, "learned", drawn)
    # The prompts' samples are mixed, so that all prompts are among the held-out documents.
    order = jax.random.permutation(key, learned.size)
    mixed = lambda leaf: leaf.reshape(learned.size, *leaf.shape[2:])[order]
    found, tokens, mask = mixed(drawn.found), mixed(drawn.tokens), mixed(drawn.mask)
    of_documents = states(world, rewards, found, tokens, mask)
    return fit_value(world, embeddings(fixed.params), of_documents, rewards, mixed(learned))


def agreement(learned: Array, gold: Array) -> Metrics:
    """Measures how right the learned reward is on samples of the model.

    Args:
      learned: `[P, N]`.
      gold: `[P, N]`, of the same samples.

    Returns:
      accuracy: how often the learned reward orders two samples of a prompt as the gold reward does;
      a tie in either counts half. correlation: of the two rewards within prompts.
    """
    differences = lambda values: jnp.sign(values[:, :, None] - values[:, None, :])
    agrees = (1.0 + differences(learned) * differences(gold)) / 2.0
    apart = ~jnp.eye(learned.shape[1], dtype=bool)
    centred = [values - jnp.mean(values, axis=1, keepdims=True) for values in (learned, gold)]
    together = jnp.mean(centred[0] * centred[1])
    return {
        "accuracy": jnp.sum(agrees * apart[None]) / (len(learned) * jnp.sum(apart)),
        "correlation": together / (deviation(learned) * deviation(gold)),
    }


def out_of_reach(
    world: World,
    fixed: Fixed,
    rewards: Rewards,
    scored: Seen,
    draw: Callable[[Key, int], Seen],
    key: Key,
) -> Array:
    """Computes the share of the gold reward's variance that no head explains, `[]`.

    The best head is fitted to `ROWS_A_FEATURE` fresh samples for every feature, which the seed
    learns nothing else from.

    Args:
      world: the world.
      fixed: its arrays.
      rewards: the seed's.
      scored: the samples on which it is scored.
      draw: `(key, number) -> samples` of every prompt.
      key: a typed key.
    """

    def read(seen: Seen) -> tuple[Array, Array]:
        gold = of_samples(world, fixed, rewards, "gold", seen)
        return pooled(rewards, seen.found, seen.mask), gold

    # A block of them at once, because features are of every token.
    size = scored.tokens.shape[1]
    number = ROWS_A_FEATURE * len(rewards.head) // len(rewards.prompt_ids)
    keys = jax.random.split(key, -(-number // size))
    found, gold = jax.lax.map(lambda key: read(draw(key, size)), keys)  # [B, P, N, ...]
    joined = lambda leaf: jnp.concatenate(leaf, axis=1)
    return unexplained((joined(found), joined(gold)), read(scored))


def unexplained(fitted: tuple[Array, Array], scored: tuple[Array, Array]) -> Array:
    """Returns the share of the variance within prompts that a linear regression leaves, `[]`.

    Args:
      fitted: what is read of the samples that are fitted, `[P, N, F]`, and their values `[P, N]`.
      scored: the same of others.
    """
    (rows, targets), (others, other_targets) = (
        [leaf - jnp.mean(leaf, axis=1, keepdims=True) for leaf in part] for part in (fitted, scored)
    )
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    rows, targets = flat(rows), flat(targets)
    width = jnp.maximum(jnp.std(rows, axis=0), 1e-6)[None]
    rows = rows / width
    weights = ridge(rows.T @ rows, rows.T @ targets, _RIDGE * len(rows))
    misses = flat(other_targets) - flat(others) / width @ weights
    return jnp.mean(jnp.square(misses)) / jnp.mean(jnp.square(other_targets))
