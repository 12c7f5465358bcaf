"""The rewards of texts: a scripted gold reward and a head that learns from it, or two judges."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.words import mentions
from experiments.search.pretrained.world import Fixed, World, features
from shatter.cli.finetune.reward_models import document_rewards
from shatter.documents import Samples
from shatter.numerics import masked_mean
from shatter.types import Array

NAMES = ("learned", "gold")


class Rewards(NamedTuple):
    """The rewards of one seed. Each has mean 0 for every prompt over samples of the model.

    Attributes:
      prompt_ids: int `[P]`, the seed's prompts.
      tastes: `[W]`, how much the words are liked, in the scripted gold reward.
      dislike: `[]`, the price of a repeated pair of tokens there.
      feature_centre: `[F]`, the mean of the model's features.
      feature_width: `[F]`, their standard deviation.
      head: `[F]`, of the learned reward, on the mean of a response's features, so scaled.
      centres: `[2, P]`, what is taken from the learned and from the gold reward.
      scales: `[2]`, what they are divided by.
    """

    prompt_ids: Array
    tastes: Array
    dislike: Array
    feature_centre: Array
    feature_width: Array
    head: Array
    centres: Array
    scales: Array


def reward(
    world: World,
    fixed: Fixed,
    rewards: Rewards,
    name: str,
    place: Array,
    tokens: Array,
    mask: Array,
) -> Array:
    """Returns the learned or the gold reward of documents that continue one prompt.

    Args:
      world: the world.
      fixed: its arrays.
      rewards: the seed's.
      name: "learned" or "gold".
      place: int `[]`, which of the seed's prompts.
      tokens: int `[N, T]`.
      mask: bool `[N, T]`, true on the response's tokens.

    Returns:
      `[N]`.
    """
    number = NAMES.index(name)
    raw = raw_reward(world, fixed, rewards, number, rewards.prompt_ids[place], tokens, mask)
    return (raw - rewards.centres[number, place]) / rewards.scales[number]


def raw_reward(
    world: World,
    fixed: Fixed,
    rewards: Rewards,
    number: int,
    prompt_id: Array,
    tokens: Array,
    mask: Array,
) -> Array:
    """Returns a reward before it is centred and scaled, `[N]`; number 0 is the learned one."""
    valid = fixed.valid[prompt_id]
    if world.judges:
        return _judged(world, fixed, number, valid, tokens, mask)
    if number == 1:
        return scripted(world, tokens, mask) @ jnp.append(rewards.tastes, -rewards.dislike)
    return pooled(rewards, features(world, fixed.params, valid, tokens), mask) @ rewards.head


def scripted(world: World, tokens: Array, mask: Array) -> Array:
    """Returns what the scripted gold reward is a sum of, `[N, W + 1]`.

    Whether each word, or a longer one that begins with it, occurs; and how many pairs of
    neighbouring tokens have occurred before in the response.
    """
    said = [mentions(tokens, mask, (word,)).astype(float) for word in world.words]
    response = jnp.where(mask, tokens, -1)[:, world.prompt_length :]
    pairs = jnp.stack([response[:, :-1], response[:, 1:]], axis=-1)
    same = jnp.all(pairs[:, :, None] == pairs[:, None, :], axis=-1)
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), k=-1)
    is_repeated = jnp.any(same & earlier[None], axis=-1) & jnp.all(pairs >= 0, axis=-1)
    return jnp.stack([*said, jnp.sum(is_repeated, axis=-1).astype(float)], axis=-1)


def pooled(rewards: Rewards, found: Array, mask: Array) -> Array:
    """Returns the mean of features `[..., T, F]` over the response's tokens, scaled: `[..., F]`."""
    scaled = standard(found, rewards.feature_centre, rewards.feature_width)
    return masked_mean(scaled, mask[..., None], axis=-2)


def standard(found: Array, centre: Array, width: Array) -> Array:
    """Returns features `[..., F]`, less their centre and divided by their width, `[F]` each."""
    centre, width = (jnp.expand_dims(a, tuple(range(found.ndim - 1))) for a in (centre, width))
    return (found - centre) / width


def _judged(
    world: World, fixed: Fixed, number: int, valid: Array, tokens: Array, mask: Array
) -> Array:
    """Returns a judge's score of documents, each closed as the judge has seen documents end."""
    assert world.closing is not None
    params, head = fixed.judges[number]
    tokens = jnp.pad(tokens, ((0, 0), (0, 1)))
    is_said = jnp.pad(mask, ((0, 0), (0, 1))).at[:, : world.prompt_length].set(valid[None])
    end = jnp.argmax(jnp.cumsum(is_said, axis=1), axis=1) + 1  # after the last one
    is_end = jnp.arange(tokens.shape[1])[None] == end[:, None]
    tokens = jnp.where(is_end, world.closing, tokens)
    return document_rewards(world.judges[number], params, head, tokens, is_said | is_end)


def deviation(values: Array) -> Array:
    """Returns the standard deviation of `[P, N]` within the rows."""
    return jnp.sqrt(jnp.mean(jnp.square(values - jnp.mean(values, axis=1, keepdims=True))))


class Seen(NamedTuple):
    """Samples of the model for all prompts of a seed, with what it read of them.

    Attributes:
      tokens: int `[P, N, T]`.
      mask: bool `[P, N, T]`, true on the response's tokens.
      found: `[P, N, T, F]`, the features.
    """

    tokens: Array
    mask: Array
    found: Array


def of_samples(
    world: World, fixed: Fixed, rewards: Rewards, name: str, seen: Samples | Seen
) -> Array:
    """Returns the learned or the gold reward of samples of all prompts, `[P, N]`."""
    number = NAMES.index(name)
    raw = raw_of_samples(world, fixed, rewards, number, seen)
    return (raw - rewards.centres[number, :, None]) / rewards.scales[number]


def raw_of_samples(
    world: World, fixed: Fixed, rewards: Rewards, number: int, seen: Samples | Seen
) -> Array:
    """Returns a reward of samples before it is centred and scaled; of `Seen` nothing is read."""
    if isinstance(seen, Seen) and number == 0 and not world.judges:
        return pooled(rewards, seen.found, seen.mask) @ rewards.head
    of_prompt = lambda row: raw_reward(world, fixed, rewards, number, *row)
    return jax.lax.map(of_prompt, (rewards.prompt_ids, seen.tokens, seen.mask))
