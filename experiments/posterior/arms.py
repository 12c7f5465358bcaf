"""Trains the objectives and measures the samplers of every setting of a figure."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.common import chunks
from experiments.common.didactic import World
from experiments.posterior import samplers
from experiments.posterior.base import Method
from experiments.posterior.config import Config
from experiments.posterior.problem import (
    Setting,
    draw_problem,
    gaussian_reward,
    moment_constraint,
    moment_feature,
    pointwise_constraint,
)
from experiments.posterior.process import make_processes
from shatter import inference
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import progress_bar

Results = dict[tuple[str, str, str], dict[str, np.ndarray]]
"""Metrics `[S, 1 + R]` by setting, objective and arm."""
Levels = list[jax.Array]
"""The levels at which an objective runs, each `[S]`, one for every seed."""


def make_settings(
    config: Config, world: World, keys: jax.Array
) -> dict[str, tuple[Setting, Levels]]:
    """Returns the figure's settings by name, with their levels.

    Args:
      config: the config.
      world: the model and all documents.
      keys: `[S]`, the seeds' keys.

    Raises:
      UsageError: if no law over the documents has the wanted moment.
    """
    tokens = world.space[0]
    betas = [jnp.full(config.num_seeds, beta) for beta in config.betas]
    if config.figure != "constraints":
        return {"posterior": (gaussian_reward, betas)}
    return {
        "pointwise": (pointwise_constraint(tokens), betas),
        "moment": (moment_constraint(tokens), [_fit_lams(config, world, keys)]),
    }


def _fit_lams(config: Config, world: World, keys: jax.Array) -> jax.Array:
    """Returns lam of the moment constraint, fitted to samples of each seed's p0, `[S]`."""
    feature = moment_feature(world.space[0])

    @jax.jit
    @jax.vmap
    def sampled(key: jax.Array) -> jax.Array:
        problem_key, run_key = jax.random.split(key)
        problem = draw_problem(problem_key, jnp.ones(()), world, gaussian_reward)
        moment_key = jax.random.fold_in(run_key, samplers.MOMENTS)
        return feature[jax.random.categorical(moment_key, problem.log_p0, shape=(10_000,))]

    try:
        lams = [
            inference.fit_moments(np.asarray(row, float)[:, None], np.array([config.moment]))
            for row in sampled(keys)
        ]
    except ValueError as error:
        raise UsageError(
            f"--moment={config.moment} cannot be reached: {error}; choose a --moment in between"
        ) from error
    return jnp.asarray(np.concatenate(lams), jnp.float32)


def train(
    config: Config,
    world: World,
    setting_name: str,
    setting: Setting,
    levels: Levels,
    keys: jax.Array,
    methods: dict[str, Method],
    folder: Path,
    console: Console,
) -> Results:
    """Trains every objective from all seeds at all levels; returns its metrics.

    Args:
      config: the config.
      world: the model and all documents.
      setting_name: the setting's name.
      setting: makes the rewards and the target.
      levels: of the setting.
      keys: `[S]`, the seeds' keys.
      methods: the objectives by name.
      folder: the run folder.
      console: shows progress.
    """
    num_records = config.num_steps // config.record_every
    processes = make_processes(config, world, setting, methods)
    results: Results = {}
    with progress_bar(console, len(methods) * num_records) as advance:
        for name, method in methods.items():
            advance(f"{setting_name} {name}", 0)
            # The target of a pointwise constraint does not depend on beta.
            is_fixed = setting_name == "pointwise" and method.by_target
            knows_beta = method.knows_beta and not is_fixed
            shown = levels if knows_beta else levels[1:2] or levels
            inputs = (jnp.tile(keys, len(shown)), jnp.concatenate(shown))
            metrics = chunks.run_seeds(
                processes[name],
                inputs,
                folder / "arms" / setting_name / name,
                chunks.equal_chunks(num_records, 1, config.chunk_records),
                progress=partial(advance, f"{setting_name} {name}"),
            )
            for place, level in enumerate(shown):
                rows = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
                arm = _arm(setting_name, level) if knows_beta else "no beta"
                results[setting_name, name, arm] = {k: v[rows] for k, v in metrics.items()}
    return results


def _arm(setting_name: str, level: jax.Array) -> str:
    return "fitted lam" if setting_name == "moment" else f"beta={float(level[0]):g}"


def sample(
    config: Config,
    world: World,
    setting_name: str,
    setting: Setting,
    levels: Levels,
    keys: jax.Array,
) -> Results:
    """Returns the metrics of the samplers, at the level of the second beta where none is used.

    Best of n, and every sampler that aims at a pointwise constraint, do not depend on beta.
    """
    results: Results = {}
    second = len(levels[:2]) - 1
    for place, level in enumerate(levels):
        if setting_name == "pointwise" and place != second:
            continue
        measured = samplers.sampler_metrics(config, world, setting, (keys, level))
        for (name, budget), metrics in measured.items():
            if name == "best_of_n" and place != second:
                continue
            arm = (
                f"n={budget}"
                if name == "best_of_n" or setting_name == "pointwise"
                else (f"{_arm(setting_name, level)} n={budget}")
            )
            results[setting_name, name, arm] = {k: v[:, None] for k, v in metrics.items()}
    return results
