"""`python -m experiments.posterior.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks
from experiments.common.didactic import World, check_documents, make_world
from experiments.common.intervals import format_interval, mean_interval
from experiments.posterior import plot, samplers
from experiments.posterior.config import OBJECTIVES, Config
from experiments.posterior.methods import PPO_EPOCHS, Method, make_methods
from experiments.posterior.problem import (
    Setting,
    draw_problem,
    gaussian_reward,
    moment_constraint,
    moment_feature,
    pointwise_constraint,
)
from experiments.posterior.process import make_process
from shatter import inference
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 5_000
Results = dict[tuple[str, str, str], dict[str, np.ndarray]]
"""Metrics `[S, 1 + R]` by setting, objective and arm."""


def check(config: Config) -> None:
    """Refuses values that cannot be.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("objective", config.objectives, _known())
    binary.at_least(
        config,
        num_seeds=2,
        vocab_size=3,
        max_length=2,
        batch_size=2,
        record_every=PPO_EPOCHS,
        chunk_records=1,
        smc_runs=1,
    )
    binary.at_least(config, num_steps=config.record_every)
    binary.positive(config, "learning_rate", "betas")
    if config.record_every % PPO_EPOCHS or config.num_steps % config.record_every:
        raise binary.UsageError(
            f"--record_every must be a multiple of {PPO_EPOCHS} and divide --num_steps, found "
            f"{config.record_every} and {config.num_steps}"
        )
    if not 0 < config.moment < 1:
        raise binary.UsageError(f"--moment must be between 0 and 1, found {config.moment}")
    if not config.twist_noise >= 0:
        raise binary.UsageError(f"--twist_noise must be at least 0, found {config.twist_noise}")
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def experiment(config: Config) -> None:
    """Trains every objective, then writes and prints the results."""
    check(config)
    console = open_console()
    world = make_world(config.model, vocab_size=config.vocab_size, max_length=config.max_length)
    methods = make_methods(world, config.batch_size)
    names = config.objectives or OBJECTIVES[config.figure]
    console.print(
        f"figure {config.figure}, {config.model}: {len(names)} objectives, {config.num_seeds} "
        f"seeds, {config.num_steps} gradient steps each, about {minutes(config):.1f} minutes on 2 "
        "CPU cores"
    )
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.figure}_{config.model}", config
    ) as folder:
        began = time.perf_counter()
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        results: Results = {}
        for setting_name, (setting, levels) in _settings(config, world, keys).items():
            try:
                lines = samplers.weight_warnings(config, world, setting, levels)
            except ValueError as error:
                raise binary.UsageError(f"{setting_name}: {error}") from error
            for line in lines:
                console.print(f"warning: {line}")
            shown = {name: methods[name] for name in names}
            results |= _train(
                config, world, setting_name, setting, levels, keys, shown, folder, console
            )
            if config.figure != "collapse":
                results |= _sample(config, world, setting_name, setting, levels, keys)
        steps = np.arange(1 + config.num_steps // config.record_every) * config.record_every
        rows = [
            row
            for (setting_name, objective, arm), metrics in results.items()
            for row in run_folder.metric_rows(
                setting_name, objective, arm, steps[-metrics["kl"].shape[1] :], metrics
            )
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [_row(key, metrics) for key, metrics in results.items()]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, world, results, steps, folder)
        for setting_name in dict.fromkeys(row["setting"] for row in summary):
            console.print(_table(config, setting_name, summary))
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def minutes(config: Config) -> float:
    """Rough cost on 2 CPU cores, from measured runs: compilation and steps."""
    names = config.objectives or OBJECTIVES[config.figure]
    settings = 2 if config.figure == "constraints" else 1
    tokens = config.vocab_size**config.max_length * (1 + config.max_length)
    runs = config.num_seeds * len(config.betas) * settings * len(names)
    a_token, compilation = {"tabular": (2e-8, 5.0), "transformer": (1e-6, 12.0)}[config.model]
    return (compilation * settings * len(names) + a_token * runs * config.num_steps * tokens) / 60


def _known() -> tuple[str, ...]:
    return tuple(make_methods(make_world("tabular", vocab_size=3, max_length=2), 2))


def _settings(
    config: Config, world: World, keys: jax.Array
) -> dict[str, tuple[Setting, list[jax.Array]]]:
    """By name: the setting, and the levels of every seed, a list of `[S]`."""
    tokens = world.space[0]
    betas = [jnp.full(config.num_seeds, beta) for beta in config.betas]
    if config.figure != "constraints":
        return {"posterior": (gaussian_reward, betas)}
    return {
        "pointwise": (pointwise_constraint(tokens), betas),
        "moment": (moment_constraint(tokens), [_fitted_lams(config, world, keys)]),
    }


def _fitted_lams(config: Config, world: World, keys: jax.Array) -> jax.Array:
    """Lam of the moment constraint, fitted to samples of each seed's p0, `[S]`."""
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
        raise binary.UsageError(f"--moment {config.moment} cannot be had: {error}") from error
    return jnp.asarray(np.concatenate(lams), jnp.float32)


def _train(
    config: Config,
    world: World,
    setting_name: str,
    setting: Setting,
    levels: list[jax.Array],
    keys: jax.Array,
    methods: dict[str, Method],
    folder: Path,
    console: Console,
) -> Results:
    num_records = config.num_steps // config.record_every
    results: Results = {}
    with progress_bar(console, len(methods) * num_records) as advance:
        for name, method in methods.items():
            advance(f"{setting_name} {name}", 0)
            # A pointwise constraint is a target without beta.
            fixed = setting_name == "pointwise" and method.by_target
            knows_beta = method.knows_beta and not fixed
            shown = levels if knows_beta else levels[1:2] or levels
            inputs = (jnp.tile(keys, len(shown)), jnp.concatenate(shown))
            metrics = chunks.run_seeds(
                make_process(config, world, setting, method),
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


def _sample(
    config: Config,
    world: World,
    setting_name: str,
    setting: Setting,
    levels: list[jax.Array],
    keys: jax.Array,
) -> Results:
    """The samplers; best of n, and those that aim at a pointwise constraint, know no beta."""
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


def _row(key: tuple[str, str, str], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    last = {name: mean_interval(values[:, -1]) for name, values in metrics.items()}
    return {"setting": key[0], "objective": key[1], "arm": key[2], **last}


def _table(config: Config, setting_name: str, summary: list[dict]) -> Table:
    columns = {
        "reward": "E r",
        "kl": "KL(pi || p0)",
        "target_kl": "KL(p* || pi)",
        "entropy": "entropy",
        "satisfied": "satisfied",
        "distinct": "distinct of 100",
    }
    if config.figure != "constraints":
        del columns["satisfied"], columns["distinct"]
    table = Table(
        title=f"{config.figure} ({setting_name}): after {config.num_steps} gradient steps of "
        f"{config.batch_size}",
        caption=f"means over {config.num_seeds} seeds [95%]; p* is that of the arm's beta, of the "
        "second beta where an objective knows none",
    )
    for heading in ("objective", "arm"):
        table.add_column(heading)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in summary:
        if row["setting"] == setting_name:
            with_interval = ("reward", "kl", "target_kl")
            cells = [format_interval(row[n], interval=n in with_interval) for n in columns]
            table.add_row(row["objective"], row["arm"], *cells)
    return table


if __name__ == "__main__":
    binary.main(Config, experiment)
