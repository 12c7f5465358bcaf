"""The scripted population: what its people like to read, and the law that follows.

Segment g has the density `q_g = p0 exp(r_g) / Z_g`: what the base says, tilted by a taste. The
population's density is `q = sum_g w_g q_g`. Every person chooses by Luce's rule on log q, so that
inclusive learning (ILHF) from infinitely many comparisons ends in q itself. With
`--people=segments` a person chooses by Luce's rule on the log q_g of one segment, and it does not.
With `--choose_by=taste` people choose by log q / p0 (or log q_g / p0) instead, from which learning
by the tilt ends in q.
The tastes: `r_1 = taste ([a word that segment 1 likes occurs] - [one that segment 2 likes
occurs])`, and `r_2 = -r_1`. In the setting chat segments do not mind each other's words: `r_g =
taste [a word that segment g likes occurs]`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.words import mentions
from experiments.online.world import Fixed, Read, World
from shatter import choice
from shatter.types import Array, Rater


def tastes(world: World, tokens: Array, mask: Array) -> Array:
    """Returns r_g of documents `[..., T]` for every segment: `[..., G]`, nats."""
    likes = [mentions(tokens, mask, words).astype(float) for words in world.likes]
    if world.config.setting != "chat":
        likes = [likes[0] - likes[1], likes[1] - likes[0]]
    return world.config.taste * jnp.stack(likes, axis=-1)


def log_weights(world: World) -> Array:
    """Returns log w of the segments, `[G]`."""
    return jnp.log(jnp.array([1.0 - world.config.minority, world.config.minority]))


def log_tilts(world: World, fixed: Fixed, responses: Any) -> Array:
    """Returns `log q_g / p0` of every response and segment: `[..., N, G]`, nats."""
    tilt = tastes(world, responses.tokens, responses.mask)
    return tilt - fixed.log_z[responses.prompt_id][..., None, :]


def log_tilt(world: World, fixed: Fixed, responses: Any) -> Array:
    """Returns `log q / p0` of every response: `[..., N]`, nats."""
    by_segment = log_tilts(world, fixed, responses)
    weights = jnp.broadcast_to(log_weights(world), by_segment.shape)
    return jax.nn.logsumexp(by_segment + weights, axis=-1)


def valued(world: World, log_p0: Array, tilt: Array) -> Array:
    """Returns what people choose by, of log p0 and log q / p0 (or log q_g / p0): nats."""
    return tilt if world.config.choose_by == "taste" else log_p0 + tilt


def make_rater(world: World, fixed: Fixed) -> Rater:
    """Returns the population as a rater of queries that the base has read."""

    def utilities(known: Read) -> Array:
        return valued(world, known.log_p0[:, None], log_tilts(world, fixed, known)).T

    make = choice.segment_rater if world.config.people == "segments" else choice.mixture_rater
    return make(utilities, log_weights(world))  # type: ignore[arg-type]
