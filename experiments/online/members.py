"""The members: adapters on the base's upper blocks, their samples and their scores."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.online.world import (
    Responses,
    World,
    base_log_probs,
    base_samples,
    sample,
    valid_tokens,
)
from shatter import documents, ensembles, evaluation, exploration, losses, models
from shatter.types import Array, Key, Params, Query

_SAMPLES_FOR_PRIOR = 64


def make_ensemble(world: World, params: Params, prior_scale: Array) -> ensembles.Ensemble:
    """Returns an ensemble of whole models, adapters on the upper blocks; `shared` is the base."""
    upper = ensembles.adapters(
        world.parts.upper,
        jax.eval_shape(world.parts.upper_params, params),
        world.lora,
        num_members=world.config.num_members,
        prior_scale=prior_scale,
    )

    def init(key: Key) -> tuple[Params, Params]:
        return params, upper.init(key)[1]

    def apply(shared: Params, own: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        hidden = world.parts.lower(shared, tokens, valid=valid)
        return upper.apply(world.parts.upper_params(shared), own, hidden, valid=valid)

    return upper._replace(init=init, apply=apply)


def member_params(world: World, shared: Params, own: Params) -> Params:
    """Returns one member as parameters of the whole model, for generation."""
    whole = ensembles.whole_adapters(own, world.layer)
    return models.with_lora(shared, whole, world.lora)


def member_log_probs(
    world: World, ensemble: ensembles.Ensemble, shared: Params, own: Params, responses: Any
) -> Array:
    """Returns one member's log-prob of every response, `[..., N]`, nats.

    Args:
      world: the world.
      ensemble: of `make_ensemble`.
      shared: the base.
      own: the member's adapters.
      responses: `Responses` or a `Query`, with any leading axes.

    Returns:
      The log-probs. Those of responses of one token are looked up in the law after every prompt.
    """
    if world.is_closed:
        laws = next_token_laws(world, ensemble, shared, own)
        prompt_id = jnp.broadcast_to(responses.prompt_id[..., None], responses.tokens.shape[:-1])
        return laws[prompt_id, responses.tokens[..., -1]]
    logits = ensemble.apply(shared, own, responses.tokens, valid=valid_tokens(world, responses))
    return documents.log_prob(logits, responses.tokens, responses.mask)


def member_utilities(
    world: World, ensemble: ensembles.Ensemble, shared: Params, own: Params, responses: Any
) -> Array:
    """Returns the utilities by which one member learns and asks, `[..., N]`, nats.

    The arguments are those of `member_log_probs`.
    """
    log_probs = member_log_probs(world, ensemble, shared, own, responses)
    if world.config.utility == "sum":
        return log_probs
    return losses.tilted_utilities(log_probs, base_log_probs(world, shared, responses))


def next_token_laws(
    world: World, ensemble: ensembles.Ensemble, shared: Params, own: Params
) -> Array:
    """Returns one member's log-probs of the token after every prompt, `[P, V]`."""
    logits = ensemble.apply(shared, own, world.prompts, valid=world.valid)
    return jax.nn.log_softmax(logits[:, -1])


def member_samples(
    world: World, shared: Params, own: Params, key: Key, num_samples: int
) -> Responses:
    """Draws samples for every prompt, the same number of each member: `[P, num_samples]`."""
    draw = lambda own, key, prompt, valid, share: sample(
        world, member_params(world, shared, own), key, prompt, valid, share
    )
    drawn = _shares(world, draw, own, key, world.prompts, world.valid, num_samples)
    return Responses(jnp.arange(len(world.prompts)), *drawn)


def make_candidates(
    world: World, source: str, temperature: float = 1.0
) -> Callable[[Key, Params, Params], Query]:
    """Returns a source of candidates: samples of the "base", or equally many of all "members".

    Args:
      world: the world.
      source: "base" or "members".
      temperature: of every token.

    Returns:
      `(key, shared, own[M]) -> candidates`, responses to a random prompt.
    """

    def candidates(key: Key, shared: Params, own: Params) -> Query:
        prompt_key, sample_key = jax.random.split(key)
        prompt_id = jax.random.randint(prompt_key, (), 0, len(world.prompts))
        place = (world.prompts[prompt_id], world.valid[prompt_id])
        number = world.config.num_candidates
        if source == "base":
            drawn = sample(world, shared, sample_key, *place, number, temperature)
        else:
            draw = lambda own, key, prompt, valid, share: sample(
                world, member_params(world, shared, own), key, prompt, valid, share, temperature
            )
            drawn = _shares(world, draw, own, sample_key, *place, number)
        return exploration.sampled_candidates(*drawn, prompt_id=prompt_id)

    return candidates


def _shares(
    world: World, draw: Any, own: Params, key: Key, prompt: Array, valid: Array, number: int
) -> tuple[Array, Array]:
    """Draws equally many samples of each member, joined along the axis of the samples."""
    num_members = world.config.num_members
    keys = jax.random.split(key, num_members)
    drawn = jax.vmap(lambda own, key: draw(own, key, prompt, valid, number // num_members))(
        own, keys
    )
    # [M, ..., n, T] -> [..., M n, T]
    joined = [jnp.concatenate(part, axis=-2) for part in drawn]
    return joined[0], joined[1]


def prior_scale_of(world: World, params: Params, key: Key) -> Array:
    """Returns the prior scale at which members disagree as the config says, on base samples."""
    pool_key, draw_key = jax.random.split(key)
    pool = base_samples(world, params, pool_key, _SAMPLES_FOR_PRIOR)

    def spread(prior_scale: Array) -> Array:
        ensemble = make_ensemble(world, params, prior_scale)
        shared, own = ensemble.init(draw_key)
        score = lambda own: member_log_probs(world, ensemble, shared, own, pool)
        return evaluation.disagreement(jax.vmap(score)(own))

    return ensembles.prior_scale_for(spread, world.config.prior_spread, num_steps=12)
