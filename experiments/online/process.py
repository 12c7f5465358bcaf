"""The run of one seed of one arm: who is asked about what, and how the members learn."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.online import measures
from experiments.online.config import LEARNING_RATES
from experiments.online.members import (
    make_candidates,
    make_ensemble,
    member_utilities,
    prior_scale_of,
)
from experiments.online.population import make_rater, tastes
from experiments.online.world import (
    Fixed,
    World,
    all_responses,
    base_log_probs,
    base_samples,
)
from shatter import exploration, losses, training
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics, Params

_SAMPLES_FOR_Z = 2048
_SAMPLES_AT_ONCE = 128


class Arm(NamedTuple):
    """A source of candidates, and how a pair is chosen among them."""

    candidates: str  # samples of the "base", or of the "members"
    explore: Callable[..., Array]  # a `PairArm`
    temperature: float = 1.0  # of every token of the samples


ARMS = {
    "passive": Arm("base", exploration.uniform),
    "pool_infomax": Arm("base", exploration.infomax),
    "sampled": Arm("members", exploration.uniform),
    "thompson": Arm("members", exploration.thompson),
    "double_thompson": Arm("members", exploration.double_thompson),
    "infomax": Arm("members", exploration.infomax),
    "v_optimal": Arm("members", exploration.v_optimal, temperature=2.0),
}


def make_fixed(world: World, params: Params) -> Fixed:
    """Computes the arrays that are the same for every seed.

    Args:
      world: the world.
      params: the base's parameters.

    Returns:
      The arrays.
    """
    z_key, prior_key = jax.random.split(jax.random.key(world.config.seed + 1))

    def fixed(params: Params) -> Fixed:
        log_z = log_normalisers(world, params, z_key)
        return Fixed(params, log_z, prior_scale_of(world, params, prior_key))

    return jax.jit(fixed, compiler_options=compiler_options())(params)


def log_normalisers(world: World, params: Params, key: Key) -> Array:
    """Returns `log E_p0 exp r_g` of every prompt and segment, `[P, G]`: exact, or from samples."""
    if world.is_closed:
        everything = all_responses(world, params)
        log_p0 = base_log_probs(world, params, everything)[..., None]
        tilted = log_p0 + tastes(world, everything.tokens, everything.mask)
        return jax.nn.logsumexp(tilted, axis=1)
    drawn = _base_tastes(world, params, key)
    return jax.nn.logsumexp(drawn, axis=1) - jnp.log(_SAMPLES_FOR_Z)


def _base_tastes(world: World, params: Params, key: Key) -> Array:
    """Returns r_g of samples of the base, `[P, n, G]`, nats."""

    def one(key: Key) -> Array:
        drawn = base_samples(world, params, key, _SAMPLES_AT_ONCE)
        return tastes(world, drawn.tokens, drawn.mask)

    parts = jax.lax.map(one, jax.random.split(key, _SAMPLES_FOR_Z // _SAMPLES_AT_ONCE))
    return jnp.concatenate(parts, axis=1)


def make_process(world: World, arm: str) -> Process:
    """Returns the run of one seed of one arm.

    Args:
      world: the world.
      arm: a name in `ARMS`.

    Returns:
      `start`, whose input is a seed's key and `Fixed`, and `rounds`. The members at the start and
      the held-out samples depend on the key alone, so that they are the same for all arms.
    """
    return Process(_start(_Static(world)), functools.partial(_rounds, world, ARMS[arm]))


class _Static:
    """A world that a cache can compare: by its config and kind, not by its arrays."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = (world.config, world.is_closed)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.name == other.name


@functools.cache
def _start(static: _Static) -> Callable[[Any], tuple[Any, Metrics]]:
    world = static.world

    def start(inputs: tuple[Key, Fixed]) -> tuple[Any, Metrics]:
        key, fixed = inputs
        held_out_key, init_key, run_key = jax.random.split(key, 3)
        held_out = measures.draw_held_out(world, fixed, held_out_key)
        state = make_interaction(world, fixed, ARMS["passive"]).init(init_key)
        metrics = _evaluate(world, fixed, held_out, run_key, state)
        # The state holds the base too, in `shared`.
        return (fixed._replace(params=()), held_out, state, run_key), metrics

    return start


def _rounds(world: World, arm: Arm, carry: Any, first_round: Array, chunk: Chunk) -> Any:
    fixed, held_out, state, key = carry
    whole = fixed._replace(params=state.shared)
    state, metrics = training.run_rounds(
        make_interaction(world, whole, arm),
        make_rater(world, whole),
        lambda state: _evaluate(world, whole, held_out, key, state),
        state,
        key,
        num_rounds=chunk.num_rounds,
        first_round=first_round,
    )
    return (fixed, held_out, state, key), metrics


def make_interaction(world: World, fixed: Fixed, arm: Arm) -> training.Interaction:
    """Returns the halves of the interaction of an arm."""
    config = world.config
    ensemble = make_ensemble(world, fixed.params, fixed.prior_scale)
    score = functools.partial(member_utilities, world, ensemble)
    rate = config.learning_rate
    rate = LEARNING_RATES[config.setting] if rate is None else rate
    return training.interaction(
        ensemble,
        propose=training.pair_proposer(
            make_candidates(world, arm.candidates, arm.temperature),
            score,
            arm.explore,
            num_queries=config.queries_per_round,
        ),
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
        batch_size=None if world.is_closed else config.batch_size,
    )


def _evaluate(
    world: World,
    fixed: Fixed,
    held_out: Any,
    key: Key,
    state: training.InteractionState,
) -> Metrics:
    ensemble = make_ensemble(world, fixed.params, fixed.prior_scale)
    own = state.members.params
    if world.is_closed:
        return measures.closed(world, fixed, ensemble, own)
    sample_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
    return measures.opened(world, fixed, ensemble, own, held_out, sample_key)
