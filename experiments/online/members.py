"""The members: adapters on the base's upper part, their samples and their scores."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.online.arms import Choose
from experiments.online.world import (
    Fixed,
    Read,
    Responses,
    World,
    above,
    base_samples,
    read,
    response_log_probs,
    response_logits,
    sample,
    valid_tokens,
)
from shatter import ensembles, evaluation, exploration, models
from shatter.factored import FactoredLogits
from shatter.types import Array, Key, Params, Query

_SAMPLES_FOR_PRIOR = 64


def make_ensemble(
    world: World,
    params: Params,
    prior_scale: Array,
    *,
    num_members: int,
    start: Literal["draw", "centre"] = "draw",
) -> ensembles.Ensemble:
    """Returns an ensemble of adapters on the upper part of the base, which `shared` leaves out."""
    upper = ensembles.adapters(
        world.parts.upper,
        jax.eval_shape(world.parts.upper_params, params),
        world.lora,
        num_members=num_members,
        prior_scale=prior_scale,
        start=start,
    )
    return upper._replace(init=lambda key: ((), upper.init(key)[1]))


def make_one(world: World, params: Params, prior_scale: Array) -> ensembles.Ensemble:
    """Returns an ensemble of one, which is the base before there is data and is pulled to it."""
    one = make_ensemble(world, params, prior_scale, num_members=1, start="centre")
    return one._replace(
        init=lambda key: ((), jax.vmap(one.start)(one.init(key)[1])),
        observation_weights=lambda key, shape: jnp.ones((1, *shape)),
    )


def member_params(world: World, params: Params, own: Params) -> Params:
    """Returns one member as parameters of the whole model, for generation."""
    whole = ensembles.whole_adapters(own, world.first_block)
    return models.with_lora(params, whole, world.lora)


def member_logits(world: World, params: Params, own: Params, known: Read) -> FactoredLogits:
    """Returns one member's logits before every token of responses and after the last, as factors.

    Args:
      world: the world.
      params: the base.
      own: the member's adapters.
      known: responses, with any leading axes.

    Returns:
      The factors of `[..., 1 + T, V]`, T the largest number of tokens of a response.
    """
    upper = models.with_lora(world.parts.upper_params(params), own, world.lora)
    return response_logits(world, above(world, upper, known.hidden, valid_tokens(world, known)))


def member_log_probs(world: World, params: Params, own: Params, known: Read) -> Array:
    """Returns one member's log-prob of every response, `[..., N]`, nats.

    The arguments are those of `member_logits`. Those of responses of one token are looked up in the
    law after every prompt.
    """
    if world.is_closed:
        laws = next_token_laws(world, params, own)
        prompt_id = jnp.broadcast_to(known.prompt_id[..., None], known.tokens.shape[:-1])
        return laws[prompt_id, known.tokens[..., -1]]
    logits = member_logits(world, params, own, known)
    return response_log_probs(world, logits, known.tokens, known.mask)


def next_token_laws(world: World, params: Params, own: Params) -> Array:
    """Returns one member's log-probs of the token after every prompt, `[P, V]`."""
    hidden = world.parts.lower(params, world.prompts, valid=world.valid)
    upper = models.with_lora(world.parts.upper_params(params), own, world.lora)
    logits = world.parts.upper.apply(upper, hidden, valid=world.valid)
    return jax.nn.log_softmax(logits[:, -1])


def member_samples(
    world: World, params: Params, own: Params, key: Key, num_samples: int, **how: Any
) -> Responses:
    """Draws samples for every prompt, the same number of each of `own[M]`: `[P, num_samples]`."""
    drawn = _shares(world, params, own, key, world.prompts, world.valid, num_samples, **how)
    return Responses(jnp.arange(len(world.prompts)), *drawn)


def make_candidates(
    world: World, params: Params, source: str, temperature: float = 1.0
) -> Callable[[Key, Params, Array], Query]:
    """Returns a source of candidates: samples of the "base", or equally many of every member.

    They are drawn from the likeliest tokens alone where the config says so. Nothing is weighted by
    the law that they are drawn from: every log-prob of them is computed anew, without the filter.

    Args:
      world: the world.
      params: the base.
      source: "base" or "learner".
      temperature: of every token.

    Returns:
      `(key, own[M], prompt_id) -> candidates[N]`, responses to a prompt.
    """

    def candidates(key: Key, own: Params, prompt_id: Array) -> Query:
        place = (world.prompts[prompt_id], world.valid[prompt_id])
        number = world.config.num_candidates
        how: Any = {"temperature": temperature, "top_k": world.config.candidate_top_k}
        if source == "base":
            drawn = sample(world, params, key, *place, number, **how)
        else:
            drawn = _shares(world, params, own, key, *place, number, **how)
        return exploration.sampled_candidates(*drawn, prompt_id=prompt_id)

    return candidates


def propose(
    world: World,
    fixed: Fixed,
    candidates: Callable[[Key, Array], Query],
    values: Callable[[Read], Array],
    choose: Choose,
    key: Key,
) -> Read:
    """Returns the queries of a round, each about a random prompt, read by the base once.

    Every query has candidates of its own. In the setting chat, where sampling takes the time, those
    about a prompt share a pool, and each may choose from a random half of it, so that they differ.

    Args:
      world: the world.
      fixed: its arrays.
      candidates: `(key, prompt_id) -> candidates[N]`.
      values: `(candidates[C, N]) -> [M, C, N]`, nats, by which a pair is chosen.
      choose: chooses the pair of one query.
      key: a typed key.

    Returns:
      The pairs, `[B, 2]`. A candidate that the arm repeats leaves its slot empty.
    """
    prompt_key, candidate_key, half_key, explore_key = jax.random.split(key, 4)
    number, num_prompts = world.config.queries_per_round, len(world.prompts)
    prompt_id = jax.random.randint(prompt_key, (number,), 0, num_prompts)
    of_pools, pool = prompt_id, jnp.arange(number)
    if world.config.setting == "chat":
        of_pools, pool = jnp.arange(num_prompts), prompt_id
    pools = jax.vmap(candidates)(jax.random.split(candidate_key, len(of_pools)), of_pools)
    known = read(world, fixed, pools, valid=pools.valid)
    valid = pools.valid[pool]
    if world.config.setting == "chat":
        order = jnp.argsort(jax.random.uniform(half_key, valid.shape), axis=1)
        valid = valid & (order < (valid.shape[1] + 1) // 2)
    keys = jax.random.split(explore_key, number)
    lengths = jnp.sum(known.mask, axis=-1)
    shown = (values(known)[:, pool], known.log_p0[pool], valid, lengths[pool])
    chosen = jax.vmap(choose, in_axes=(0, 1, 0, 0, 0))(keys, *shown)
    _, *others = known
    taken = Read(prompt_id, *(leaf[pool[:, None], chosen] for leaf in others))
    is_first = jnp.stack([jnp.ones(number, bool), chosen[:, 1] != chosen[:, 0]], axis=-1)
    return taken._replace(valid=taken.valid & is_first)


def without_hidden(known: Read) -> Read:
    """Returns responses to be kept where no adapter will read what entered the adapted part."""
    return known._replace(hidden=known.hidden[..., :1, :1])


def _shares(
    world: World,
    params: Params,
    own: Params,
    key: Key,
    prompt: Array,
    valid: Array,
    number: int,
    **how: Any,
) -> tuple[Array, Array]:
    """Draws equally many samples of each member, joined along the axis of the samples."""
    num_members = jax.tree.leaves(own)[0].shape[0]

    def draw(own: Params, key: Key) -> tuple[Array, Array]:
        whole = member_params(world, params, own)
        return sample(world, whole, key, prompt, valid, number // num_members, **how)

    drawn = jax.vmap(draw)(own, jax.random.split(key, num_members))
    # [M, ..., n, T] -> [..., M n, T]
    joined = [jnp.concatenate(part, axis=-2) for part in drawn]
    return joined[0], joined[1]


def prior_scale_of(world: World, fixed: Fixed, key: Key) -> Array:
    """Returns the prior scale at which members disagree as the config says, on base samples."""
    pool_key, draw_key = jax.random.split(key)
    number = min(_SAMPLES_FOR_PRIOR, max(world.config.num_base_samples // 4, 2))
    pool = read(world, fixed, base_samples(world, fixed.params, pool_key, number))

    def spread(prior_scale: Array) -> Array:
        ensemble = make_ensemble(
            world, fixed.params, prior_scale, num_members=world.config.num_members
        )
        own = ensemble.init(draw_key)[1]
        score = lambda own: member_log_probs(world, fixed.params, own, pool)
        return evaluation.disagreement(jax.vmap(score)(own))

    return ensembles.prior_scale_for(spread, world.config.prior_spread, num_steps=12)
