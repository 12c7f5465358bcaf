"""Measures of sampled texts: what they mention, and how diverse they are."""

import jax
import jax.numpy as jnp

from experiments.common.words import mentions
from experiments.online.world import Read, Responses, World
from shatter.types import Array, Metrics

SEGMENTS = ("majority", "minority")


def text_measures(world: World, said: Responses | Read) -> Metrics:
    """Returns how many samples of `[P, n]` mention what a segment likes, and how diverse they are.

    distinct: different bigrams over all bigrams of the responses to a prompt. pairwise: mean over
    pairs of responses of 1 - |A and B| / |A or B|, A and B the sets of their tokens.
    """
    response = jnp.where(said.mask, said.tokens, -1)
    shares = {
        f"likes_{name}": jnp.mean(mentions(said.tokens, said.mask, words))
        for name, words in zip(SEGMENTS, world.likes, strict=True)
    }

    return {
        **shares,
        "distinct": jnp.mean(jax.vmap(_distinct)(response)),
        "pairwise": jnp.mean(jax.vmap(_pairwise)(response)),
        "length": jnp.mean(jnp.sum(said.mask, axis=-1)),
    }


def _distinct(response: Array) -> Array:
    """Returns the share of different bigrams among all bigrams of responses `[n, T]`; -1 pads."""
    first, second = response[:, :-1].ravel(), response[:, 1:].ravel()
    both = (first >= 0) & (second >= 0)
    order = jnp.lexsort((second, first, ~both))
    first, second = first[order], second[order]
    changes = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    is_new = jnp.concatenate([jnp.ones(1, bool), changes])
    return jnp.sum(is_new & both[order]) / jnp.maximum(jnp.sum(both), 1)


def _pairwise(response: Array) -> Array:
    """Returns the mean distance of the token sets of responses `[n, T]`; -1 pads."""
    number = len(response)
    is_first = jax.vmap(
        lambda row: jnp.argmax(row[:, None] == row[None, :], axis=1) == jnp.arange(len(row))
    )(response) & (response >= 0)
    # Whether a token of one response occurs in another.
    occurs = jax.vmap(
        lambda row: jax.vmap(lambda other: jnp.any(row[:, None] == other[None, :], axis=1))(
            response
        )
    )(response)
    both = jnp.sum(occurs & is_first[:, None, :], axis=-1)
    sizes = jnp.sum(is_first, axis=-1)
    either = sizes[:, None] + sizes[None, :] - both
    distances = 1.0 - both / either
    return jnp.sum(distances) / (number * (number - 1))  # 0 on the diagonal
