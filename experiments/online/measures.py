"""The measures of who speaks: exact in the closed setting, by samples in the others.

In these q is known as `p0 exp tilt`, tilt = log q / p0 (normalised up to the error of
the estimated Z_g), so samples of p0 with the weights exp tilt stand for q.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.online.arms import Speaker
from experiments.online.members import member_log_probs, member_samples, next_token_laws
from experiments.online.population import log_tilt, log_tilts, log_weights, valued
from experiments.online.texts import SEGMENTS, text_measures
from experiments.online.world import (
    Fixed,
    Read,
    Responses,
    World,
    all_responses,
    base_samples,
    read,
    sample,
)
from shatter import choice, ensembles, evaluation, numerics
from shatter.types import Array, Key, Metrics, Params

_SAMPLED = ("kl", "win_rate", "win_greedy", "choice_loss_base", "tilt", "distinct")
MEASURES = {
    "closed": ("kl", "win_greedy", "entropy", "kl_majority", "kl_minority", "win_rate"),
    "open": _SAMPLED,
    "chat": _SAMPLED,
}
"""The main measures of a setting, for tables and figures."""


class HeldOut(NamedTuple):
    """The held-out samples and choices of a seed where responses are texts, for all arms."""

    pool: Read  # [P, N], samples of the base
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
    pool = read(world, fixed, base_samples(world, fixed.params, pool_key, number))
    tilt = log_tilt(world, fixed, pool)
    values = valued(world, pool.log_p0, tilt)

    def pairs(pair_key: Key, choice_key: Key, log_law: Array) -> tuple[Array, Array]:
        first, other = jax.random.split(pair_key)
        laws = jnp.repeat(log_law[:, None], number, axis=1)
        i = jax.random.categorical(first, laws)
        # The second differs from the first, because a choice between two copies says nothing.
        same = jax.nn.one_hot(i, number, dtype=bool)
        j = jax.random.categorical(other, jnp.where(same, -jnp.inf, laws))
        drawn = jnp.stack([i, j], axis=-1)
        return drawn, choice.luce_sample(choice_key, _pick(values, drawn))

    base = pairs(keys[0], keys[1], jnp.zeros((num_prompts, number)))
    wanted = pairs(keys[2], keys[3], tilt)
    return HeldOut(pool, log_tilts(world, fixed, pool), *base, *wanted)


def closed(world: World, fixed: Fixed, speaker: Speaker) -> Metrics:
    """Returns exact measures over all responses of one token, means over prompts.

    Those that begin with readout are of p0 exp(r / beta) / Z, r what the learner takes people to
    choose by: what each of them would say if it had only to win.
    """
    everything = read(world, fixed, all_responses(world, fixed.params))
    log_p0 = everything.log_p0  # [P, V]
    by_segment = log_p0[..., None] + log_tilts(world, fixed, everything)
    tilt = log_tilt(world, fixed, everything)
    log_q = log_p0 + tilt
    values = valued(world, log_p0, tilt)
    laws = jax.vmap(lambda own: next_token_laws(world, fixed.params, own))(speaker.own)
    mixture = ensembles.mixture_log_probs(laws)
    likeliest = lambda law: jnp.take_along_axis(values, jnp.argmax(law, -1)[:, None], 1)[:, 0]

    def measure(log_law: Array) -> Metrics:
        found = jax.vmap(evaluation.prediction_metrics)(log_law, log_p0, log_q)
        wins = jax.nn.sigmoid(likeliest(log_law) - likeliest(log_p0))
        of_samples = jax.vmap(evaluation.win_rate)(log_law, log_p0, values)
        return found | {"win_rate": of_samples, "win_greedy": wins}

    metrics = measure(mixture)
    reward = ensembles.mixture_log_probs(speaker.utilities(everything))
    readout, _ = evaluation.posterior_optimum(log_p0, reward, beta=world.config.readout_beta)
    metrics |= {f"readout_{name}": value for name, value in measure(readout).items()}
    segments = jax.vmap(evaluation.segment_kl)(by_segment.swapaxes(1, 2), mixture)
    metrics |= {f"kl_{name}": segments[:, g] for g, name in enumerate(SEGMENTS)}
    metrics |= {f"base_{name}": value for name, value in measure(log_p0).items()}
    metrics |= {f"q_{name}": value for name, value in measure(log_q).items()}
    for place, law in (("base", log_p0), ("q", log_q)):
        best = jax.vmap(evaluation.segment_kl)(by_segment.swapaxes(1, 2), law)
        metrics |= {f"{place}_kl_{name}": best[:, g] for g, name in enumerate(SEGMENTS)}
    metrics["kl_to_base"] = numerics.kl_divergence(mixture, log_p0)
    metrics["member_kl"] = jnp.mean(
        numerics.kl_divergence(jnp.broadcast_to(log_q, laws.shape), laws), axis=0
    )
    return {name: jnp.mean(value) for name, value in metrics.items()}


def opened(world: World, fixed: Fixed, speaker: Speaker, held_out: HeldOut, key: Key) -> Metrics:
    """Returns estimates from held-out samples of the base and from new samples of who speaks."""
    score = jax.vmap(
        lambda own, known: member_log_probs(world, fixed.params, own, known), in_axes=(0, None)
    )
    own, pool = speaker.own, held_out.pool
    drawn = member_samples(world, fixed.params, own, key, world.config.num_samples)
    said = read(world, fixed, drawn)
    log_pi = ensembles.mixture_log_probs(score(own, said))
    tilt = log_tilt(world, fixed, said)
    values = valued(world, said.log_p0, tilt)
    return {
        **_from_pool(world, held_out, score(own, pool), speaker.utilities(pool)),
        **_levels(world, held_out),
        "win_rate": jnp.mean(_wins(values, _pool_values(world, held_out))),
        "win_greedy": jnp.mean(_greedy_wins(world, fixed, own, key, score)),
        "tilt": jnp.mean(tilt),
        "entropy": -jnp.mean(log_pi),
        "kl_to_base": jnp.mean(log_pi - said.log_p0),
        **text_measures(world, said),
    }


def _greedy_wins(
    world: World, fixed: Fixed, own: Params, key: Key, score: Callable[[Params, Read], Array]
) -> Array:
    """Returns how often people prefer greedy decoding to the base's greedy decoding, `[P]`.

    Of several members it is the greedy decoding of one of them that is likeliest in their mixture.
    """
    number = jax.tree.leaves(own)[0].shape[0]
    said = member_samples(world, fixed.params, own, key, number, top_k=1)
    base = sample(world, fixed.params, key, world.prompts, world.valid, 1, top_k=1)
    both = [
        jnp.concatenate(pair, axis=1) for pair in zip((said.tokens, said.mask), base, strict=True)
    ]
    known = read(world, fixed, Responses(said.prompt_id, *both))  # the base's is the last
    values = valued(world, known.log_p0, log_tilt(world, fixed, known))
    law = ensembles.mixture_log_probs(score(own, known))[:, :number]
    chosen = jnp.take_along_axis(values, jnp.argmax(law, axis=1)[:, None], axis=1)[:, 0]
    return jax.nn.sigmoid(chosen - values[:, -1])


def _levels(world: World, held_out: HeldOut) -> Metrics:
    """Returns the measures of the base and of q itself, from the same held-out samples."""
    tilt = _pool_tilt(world, held_out)
    weights = jax.nn.softmax(tilt, axis=-1)
    values = _pool_values(world, held_out)
    wins = _wins(values, values)
    number = min(world.config.num_samples, world.config.pool_size)
    pool = held_out.pool
    first = Responses(pool.prompt_id, pool.tokens[:, :number], pool.mask[:, :number])
    at_p0, at_q = (_of_law(world, held_out, pool.log_p0 + part) for part in (0.0 * tilt, tilt))
    return {
        **{f"base_{name}": value for name, value in at_p0.items()},
        **{f"q_{name}": value for name, value in at_q.items()},
        "base_win_rate": jnp.full((), 0.5),
        "base_win_greedy": jnp.full((), 0.5),
        "q_win_rate": jnp.mean(jnp.sum(weights * jnp.mean(wins, axis=-1), axis=-1)),
        "base_tilt": jnp.mean(tilt),
        "q_tilt": jnp.mean(jnp.sum(weights * tilt, axis=-1)),
        "pool_ess": jnp.mean(1.0 / jnp.sum(jnp.square(weights), axis=-1)),
        **{f"base_{name}": value for name, value in text_measures(world, first).items()},
    }


def _of_law(world: World, held_out: HeldOut, law: Array) -> Metrics:
    """Returns the measures of a law with log-probs `[P, N]` on the pool as who speaks."""
    log_p0 = held_out.pool.log_p0
    return _from_pool(world, held_out, law[None], valued(world, log_p0, law - log_p0)[None])


def _from_pool(world: World, held_out: HeldOut, members: Array, utilities: Array) -> Metrics:
    """Returns losses on held-out choices, and KL(q || pi) and by segment.

    KL is estimated from samples of p0 that are weighted by their tilt,

    `sum_i w_i (tilt_i + log p0(x_i) - log pi(x_i)) - log mean_i exp tilt_i`, `w_i` in proportion to
    `exp tilt_i`. It is self-normalised, so that the error of the estimated Z_g cancels. At pi = q
    the estimate is minus the log of the mean of exp tilt over the pool, whose expectation is about
    half of that mean's relative variance: the bias.

    Args:
      world: the world.
      held_out: the pool and the choices.
      members: `[M, P, N]`, log-probs of the pool of those who speak together.
      utilities: `[K, P, N]`, by which K predict choices together.

    Returns:
      The measures.
    """
    log_ratio = held_out.pool.log_p0 - ensembles.mixture_log_probs(members)

    def kl(tilt: Array) -> Array:
        weights = jax.nn.softmax(tilt, axis=-1)
        log_z = jax.nn.logsumexp(tilt, axis=-1) - jnp.log(tilt.shape[-1])
        return jnp.mean(jnp.sum(weights * (tilt + log_ratio), axis=-1) - log_z)

    of_segments = {f"kl_{name}": kl(held_out.log_tilts[..., g]) for g, name in enumerate(SEGMENTS)}
    return {
        "kl": kl(_pool_tilt(world, held_out)),
        **of_segments,
        "choice_loss_base": _choice_loss(utilities, held_out.base_pairs, held_out.base_choices),
        "choice_loss_q": _choice_loss(utilities, held_out.q_pairs, held_out.q_choices),
    }


def _pool_tilt(world: World, held_out: HeldOut) -> Array:
    weights = jnp.broadcast_to(log_weights(world), held_out.log_tilts.shape)
    return jax.nn.logsumexp(held_out.log_tilts + weights, axis=-1)


def _pool_values(world: World, held_out: HeldOut) -> Array:
    """Returns what people choose by, of the held-out samples, `[P, N]`."""
    return valued(world, held_out.pool.log_p0, _pool_tilt(world, held_out))


def _wins(values: Array, others: Array) -> Array:
    """Returns how often a person prefers each of `[P, n]` to each of `[P, N]`; copies: 0.5."""
    return jax.nn.sigmoid(values[:, :, None] - others[:, None, :])


def _choice_loss(utilities: Array, pairs: Array, choices: Array) -> Array:
    """Returns the mean log-loss of the mixture's predictions, nats."""
    shown = jax.vmap(_pick, in_axes=(0, None))(utilities, pairs)
    labels = choice.luce_log_prob(shown, jnp.broadcast_to(choices, shown.shape[:-1]))
    return jnp.mean(evaluation.marginal_log_loss(labels))


def _pick(values: Array, pairs: Array) -> Array:
    """Returns the values `[P, Q, 2]` at `pairs`, from values `[P, N]`."""
    return jax.vmap(lambda row, pairs: row[pairs])(values, pairs)
