"""The measures of the members' mixture: exact in the closed setting, by samples in the open.

In the open setting q is known as `p0 exp tilt`, tilt = log q / p0 (normalised up to the error of
the estimated Z_g), so samples of p0 with the weights exp tilt stand for q.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.online.members import member_log_probs, member_samples, next_token_laws
from experiments.online.population import log_tilt, log_tilts, log_weights, mentions
from experiments.online.world import (
    Fixed,
    Responses,
    World,
    all_responses,
    base_log_probs,
    base_samples,
)
from shatter import choice, ensembles, evaluation
from shatter.types import Array, Key, Metrics, Params

SEGMENTS = ("majority", "minority")
MEASURES = {
    "closed": ("kl", "total_variation", "entropy", "kl_majority", "kl_minority", "win_rate"),
    "open": ("kl", "win_rate", "choice_loss_q", "choice_loss_base", "tilt", "distinct"),
}
"""The main measures of a setting, for tables and figures."""


class HeldOut(NamedTuple):
    """The held-out samples and choices of a seed in the open setting, for all arms and rounds."""

    pool: Responses  # [P, N], samples of the base
    log_p0: Array  # [P, N]
    log_tilts: Array  # [P, N, G]
    base_pairs: Array  # int [P, Q, 2], of the pool, uniformly
    base_choices: Array  # int [P, Q]
    q_pairs: Array  # int [P, Q, 2], of the pool, by the weights of q
    q_choices: Array  # int [P, Q]


def draw_held_out(world: World, fixed: Fixed, key: Key) -> Any:
    """Draws the held-out samples and choices of a seed; `()` where measures are exact."""
    if world.is_closed:
        return ()
    pool_key, *keys = jax.random.split(key, 5)
    num_prompts, number = len(world.prompts), world.config.pool_size
    pool = base_samples(world, fixed.params, pool_key, number)
    log_p0 = base_log_probs(world, fixed.params, pool)
    tilt = log_tilt(world, fixed, pool)

    def pairs(pair_key: Key, choice_key: Key, log_law: Array) -> tuple[Array, Array]:
        first, other = jax.random.split(pair_key)
        laws = jnp.repeat(log_law[:, None], number, axis=1)
        i = jax.random.categorical(first, laws)
        # The second differs from the first, because a choice between two copies says nothing.
        same = jax.nn.one_hot(i, number, dtype=bool)
        j = jax.random.categorical(other, jnp.where(same, -jnp.inf, laws))
        drawn = jnp.stack([i, j], axis=-1)
        return drawn, choice.luce_sample(choice_key, _pick(log_p0 + tilt, drawn))

    base = pairs(keys[0], keys[1], jnp.zeros((num_prompts, number)))
    wanted = pairs(keys[2], keys[3], tilt)
    return HeldOut(pool, log_p0, log_tilts(world, fixed, pool), *base, *wanted)


def closed(world: World, fixed: Fixed, ensemble: ensembles.Ensemble, own: Params) -> Metrics:
    """Returns exact measures over all responses of one token, means over prompts."""
    everything = all_responses(world, fixed.params)
    log_p0 = base_log_probs(world, fixed.params, everything)  # [P, V]
    by_segment = log_p0[..., None] + log_tilts(world, fixed, everything)
    log_q = log_p0 + log_tilt(world, fixed, everything)
    laws = jax.vmap(lambda own: next_token_laws(world, ensemble, fixed.params, own))(own)
    mixture = ensembles.mixture_log_probs(laws)
    metrics = jax.vmap(evaluation.prediction_metrics)(mixture, log_p0, log_q)
    segments = jax.vmap(evaluation.segment_kl)(by_segment.swapaxes(1, 2), mixture)
    metrics |= {f"kl_{name}": segments[:, g] for g, name in enumerate(SEGMENTS)}
    at_p0 = jax.vmap(evaluation.prediction_metrics)(log_p0, log_p0, log_q)
    at_q = jax.vmap(evaluation.prediction_metrics)(log_q, log_p0, log_q)
    metrics |= {f"base_{name}": value for name, value in at_p0.items()}
    metrics |= {f"q_{name}": value for name, value in at_q.items()}
    for place, law in (("base", log_p0), ("q", log_q)):
        best = jax.vmap(evaluation.segment_kl)(by_segment.swapaxes(1, 2), law)
        metrics |= {f"{place}_kl_{name}": best[:, g] for g, name in enumerate(SEGMENTS)}
    metrics["kl_to_base"] = evaluation.kl_divergence(mixture, log_p0)
    metrics["member_kl"] = jnp.mean(
        evaluation.kl_divergence(jnp.broadcast_to(log_q, laws.shape), laws), axis=0
    )
    return {name: jnp.mean(value) for name, value in metrics.items()}


def opened(
    world: World,
    fixed: Fixed,
    ensemble: ensembles.Ensemble,
    own: Params,
    held_out: HeldOut,
    key: Key,
) -> Metrics:
    """Returns estimates from held-out samples of the base and from new samples of the mixture."""
    score = jax.vmap(
        lambda own, responses: member_log_probs(world, ensemble, fixed.params, own, responses),
        in_axes=(0, None),
    )
    members = score(own, held_out.pool)  # [M, P, N]
    said = member_samples(world, fixed.params, own, key, world.config.num_samples)
    log_pi = ensembles.mixture_log_probs(score(own, said))
    log_p0 = base_log_probs(world, fixed.params, said)
    tilt = log_tilt(world, fixed, said)
    return {
        **_from_pool(world, held_out, members),
        **_levels(world, held_out),
        "win_rate": jnp.mean(_wins(log_p0 + tilt, held_out.log_p0 + _pool_tilt(world, held_out))),
        "tilt": jnp.mean(tilt),
        "entropy": -jnp.mean(log_pi),
        "kl_to_base": jnp.mean(log_pi - log_p0),
        **_texts(world, said),
    }


def _levels(world: World, held_out: HeldOut) -> Metrics:
    """Returns the measures of the base and of q itself, from the same held-out samples."""
    tilt = _pool_tilt(world, held_out)
    weights = jax.nn.softmax(tilt, axis=-1)
    wins = _wins(held_out.log_p0 + tilt, held_out.log_p0 + tilt)
    number = min(world.config.num_samples, world.config.pool_size)
    pool = held_out.pool
    first = Responses(pool.prompt_id, pool.tokens[:, :number], pool.mask[:, :number])
    at_p0 = _from_pool(world, held_out, held_out.log_p0[None])
    at_q = _from_pool(world, held_out, (held_out.log_p0 + tilt)[None])
    return {
        **{f"base_{name}": value for name, value in at_p0.items()},
        **{f"q_{name}": value for name, value in at_q.items()},
        "base_win_rate": jnp.full((), 0.5),
        "q_win_rate": jnp.mean(jnp.sum(weights * jnp.mean(wins, axis=-1), axis=-1)),
        "base_tilt": jnp.mean(tilt),
        "q_tilt": jnp.mean(jnp.sum(weights * tilt, axis=-1)),
        "pool_ess": jnp.mean(1.0 / jnp.sum(jnp.square(weights), axis=-1)),
        **{f"base_{name}": value for name, value in _texts(world, first).items()},
    }


def _from_pool(world: World, held_out: HeldOut, members: Array) -> Metrics:
    """Returns losses on held-out choices, and KL(q || pi) and by segment, of `members[M, P, N]`.

    KL is estimated from samples of p0 that are weighted by their tilt,

    `sum_i w_i (tilt_i + log p0(x_i) - log pi(x_i)) - log mean_i exp tilt_i`, `w_i` in proportion to
    `exp tilt_i`. It is self-normalised, so that the error of the estimated Z_g cancels. At pi = q
    the estimate is minus the log of the mean of exp tilt over the pool, whose expectation is about
    half of that mean's relative variance: the bias.
    """
    log_ratio = held_out.log_p0 - ensembles.mixture_log_probs(members)

    def kl(tilt: Array) -> Array:
        weights = jax.nn.softmax(tilt, axis=-1)
        log_z = jax.nn.logsumexp(tilt, axis=-1) - jnp.log(tilt.shape[-1])
        return jnp.mean(jnp.sum(weights * (tilt + log_ratio), axis=-1) - log_z)

    of_segments = {f"kl_{name}": kl(held_out.log_tilts[..., g]) for g, name in enumerate(SEGMENTS)}
    return {
        "kl": kl(_pool_tilt(world, held_out)),
        **of_segments,
        "choice_loss_base": _choice_loss(members, held_out.base_pairs, held_out.base_choices),
        "choice_loss_q": _choice_loss(members, held_out.q_pairs, held_out.q_choices),
    }


def _pool_tilt(world: World, held_out: HeldOut) -> Array:
    weights = jnp.broadcast_to(log_weights(world), held_out.log_tilts.shape)
    return jax.nn.logsumexp(held_out.log_tilts + weights, axis=-1)


def _wins(log_q: Array, others: Array) -> Array:
    """Returns how often a person prefers each of `[P, n]` to each of `[P, N]`; copies: 0.5."""
    return jax.nn.sigmoid(log_q[:, :, None] - others[:, None, :])


def _choice_loss(members: Array, pairs: Array, choices: Array) -> Array:
    """Returns the mean log-loss of the mixture's predictions, nats."""
    shown = jax.vmap(_pick, in_axes=(0, None))(members, pairs)
    labels = choice.luce_log_prob(shown, jnp.broadcast_to(choices, shown.shape[:-1]))
    return jnp.mean(evaluation.marginal_log_loss(labels))


def _pick(values: Array, pairs: Array) -> Array:
    """Returns the values `[P, Q, 2]` at `pairs`, from values `[P, N]`."""
    return jax.vmap(lambda row, pairs: row[pairs])(values, pairs)


def _texts(world: World, said: Responses) -> Metrics:
    """Returns how many samples of `[P, n]` mention what a segment likes, and how diverse they are.

    distinct: different bigrams over all bigrams of the responses to a prompt. pairwise: mean over
    pairs of responses of 1 - |A and B| / |A or B|, A and B the sets of their tokens.
    """
    response = jnp.where(said.mask, said.tokens, -1)
    shares = {
        f"likes_{name}": jnp.mean(mentions(said.tokens, said.mask, words))
        for name, words in zip(SEGMENTS, world.likes, strict=True)
    }

    def distinct(response: Array) -> Array:
        first, second = response[:, :-1].ravel(), response[:, 1:].ravel()
        both = (first >= 0) & (second >= 0)
        order = jnp.lexsort((second, first, ~both))
        first, second = first[order], second[order]
        changes = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        is_new = jnp.concatenate([jnp.ones(1, bool), changes])
        return jnp.sum(is_new & both[order]) / jnp.maximum(jnp.sum(both), 1)

    def pairwise(response: Array) -> Array:
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

    return {
        **shares,
        "distinct": jnp.mean(jax.vmap(distinct)(response)),
        "pairwise": jnp.mean(jax.vmap(pairwise)(response)),
        "length": jnp.mean(jnp.sum(said.mask, axis=-1)),
    }
