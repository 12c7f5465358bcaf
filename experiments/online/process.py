"""The run of one seed of one arm: who is asked about what, and how the learner learns."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.chunks import Chunk, Process
from experiments.online import measures
from experiments.online.arms import ARMS, Arm, Learner
from experiments.online.members import prior_scale_of
from experiments.online.one_model import one_model
from experiments.online.population import log_tilts, make_rater, tastes, valued
from experiments.online.two_models import two_models
from experiments.online.world import (
    Fixed,
    World,
    all_responses,
    base_samples,
    read,
)
from shatter import training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics, Params

_PARTS_OF_Z = 16  # the samples that estimate it are drawn in so many parts

_OTHER_MODEL = ("model_name_or_path", "name a model that can be computed in float32")
_OTHER_TASTE = ("taste", "choose a smaller one")
_CHECKED = (
    ("log-probs of the base", *_OTHER_MODEL),
    ("features of the base", *_OTHER_MODEL),
    ("normalisers of the population's law", *_OTHER_TASTE),
    ("utilities by which people choose", *_OTHER_TASTE),
    ("prior scale of the members", "prior_spread", "choose another"),
)
"""What has to be finite before anything is learned, and the flag to change where it is not."""


def make_fixed(world: World, params: Params) -> Fixed:
    """Computes the arrays that are the same for every seed.

    Args:
      world: the world.
      params: the base's parameters.

    Returns:
      The arrays.

    Raises:
      UsageError: if one of them, or what people choose samples of the base by, is not finite; else
        choices by NaN would be learned from as if they were answers.
    """
    z_key, prior_key, feature_key = jax.random.split(jax.random.key(world.config.seed + 1), 3)

    def arrays(params: Params) -> tuple[tuple[Array, ...], Array]:
        fixed = Fixed(params, jnp.zeros(()), jnp.ones(()), jnp.zeros(()), jnp.ones(()))
        fixed = fixed._replace(log_z=log_normalisers(world, fixed, z_key))
        drawn = base_samples(world, params, feature_key, world.config.pool_size)
        known = read(world, fixed, drawn)
        features = known.features
        centre, width = jnp.mean(features, axis=(0, 1)), jnp.std(features, axis=(0, 1))
        width = jnp.maximum(width, 1e-6)
        prior_scale = prior_scale_of(world, fixed, prior_key)
        liked = valued(world, known.log_p0[..., None], log_tilts(world, fixed, known))
        checked = (known.log_p0, features, fixed.log_z, liked, prior_scale)
        is_finite = jnp.stack([jnp.all(jnp.isfinite(part)) for part in checked])
        return (fixed.log_z, prior_scale, centre, width), is_finite

    found, is_finite = jax.jit(arrays, compiler_options=compiler_options())(params)
    _assert_finite(world, is_finite)
    return Fixed(params, *found)


def _assert_finite(world: World, is_finite: Array) -> None:
    """Raises an error about the first of `_CHECKED` that is not finite."""
    for (name, flag, advice), finite in zip(_CHECKED, is_finite.tolist(), strict=True):
        if not finite:
            raise UsageError(
                f"--{flag}={getattr(world.config, flag)}: expected finite {name} on samples of the "
                f"base, found NaN or inf: {advice}"
            )


def log_normalisers(world: World, fixed: Fixed, key: Key) -> Array:
    """Returns `log E_p0 exp r_g` of every prompt and segment, `[P, G]`: exact, or from samples."""
    if world.is_closed:
        everything = all_responses(world, fixed.params)
        log_p0 = read(world, fixed, everything).log_p0[..., None]
        tilted = log_p0 + tastes(world, everything.tokens, everything.mask)
        return jax.nn.logsumexp(tilted, axis=1)
    number = -(-world.config.num_base_samples // _PARTS_OF_Z)

    def one(key: Key) -> Array:
        drawn = base_samples(world, fixed.params, key, number)
        return tastes(world, drawn.tokens, drawn.mask)

    parts = jax.lax.map(one, jax.random.split(key, _PARTS_OF_Z))  # [parts, P, n, G]
    log_sums = jax.nn.logsumexp(parts, axis=(0, 2))
    return log_sums - jnp.log(_PARTS_OF_Z * number)


def make_process(world: World, arm: str) -> Process:
    """Returns the run of one seed of one arm.

    Args:
      world: the world.
      arm: a name in `ARMS`.

    Returns:
      `start` and `rounds`, whose input is a seed's key and which share `Fixed`. The held-out
      samples depend on the key alone; who learns starts alike in all arms of a kind, but for the
      particles of a pipeline.
    """
    return Process(_start(_Static(world, ARMS[arm])), functools.partial(_rounds, world, ARMS[arm]))


class _Static:
    """A world and a learner that a cache can compare, not by the world's arrays."""

    def __init__(self, world: World, arm: Arm) -> None:
        self.world, self.arm = world, arm
        # Whoever learns, arms of a kind start alike; a pipeline has particles where it selects.
        self.name = (world.config, arm.kind, arm.explore if arm.kind == "pipeline" else None)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.name == other.name


@functools.cache
def _start(static: _Static) -> Callable[..., tuple[Any, Metrics]]:
    world = static.world

    def start(key: Key, fixed: Fixed) -> tuple[Any, Metrics]:
        held_out_key, init_key, run_key, measure_key = jax.random.split(key, 4)
        held_out = measures.draw_held_out(world, fixed, held_out_key)
        learner = make_learner(world, fixed, static.arm)
        state = learner.interaction.init(init_key)
        metrics = _evaluate(world, fixed, learner, held_out, measure_key, state)
        return (held_out, state, run_key, measure_key), metrics

    return start


def _rounds(
    world: World, arm: Arm, carry: Any, first_round: Array, chunk: Chunk, fixed: Fixed
) -> Any:
    held_out, state, key, measure_key = carry
    learner = make_learner(world, fixed, arm)
    state, metrics = training.run_rounds(
        learner.interaction,
        make_rater(world, fixed),
        functools.partial(_evaluate, world, fixed, learner, held_out, measure_key),
        state,
        key,
        num_rounds=chunk.num_rounds,
        first_round=first_round,
    )
    return (held_out, state, key, measure_key), metrics


def make_learner(world: World, fixed: Fixed, arm: Arm) -> Learner:
    """Returns the learner of an arm."""
    make = two_models if arm.kind == "pipeline" else one_model
    return make(world, fixed, arm)


def _evaluate(
    world: World, fixed: Fixed, learner: Learner, held_out: Any, key: Key, state: Any
) -> Metrics:
    speaker = learner.speaker(state)
    if world.is_closed:
        return measures.closed(world, fixed, speaker)
    return measures.opened(world, fixed, speaker, held_out, jax.random.fold_in(key, speaker.step))
