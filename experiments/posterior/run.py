"""`python -m experiments.posterior.run`: see README.md beside this file."""

import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.common.didactic import World, check_documents, make_world
from experiments.posterior import plot, ppo, samplers
from experiments.posterior.arms import Results, make_settings, sample, train
from experiments.posterior.config import OBJECTIVES, Config
from experiments.posterior.interface import interface_results
from experiments.posterior.methods import METHODS
from experiments.posterior.summary import summary_row, summary_table
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console

MOST_DOCUMENTS = 5_000


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("objective", config.objectives, tuple(METHODS))
    binary.at_least(
        config,
        num_seeds=2,
        vocab_size=3,
        max_length=2,
        batch_size=2,
        record_every=ppo.EPOCHS,
        chunk_records=1,
        smc_runs=1,
    )
    binary.at_least(config, num_steps=config.record_every)
    binary.positive(config, "learning_rate", "betas")
    if config.record_every % ppo.EPOCHS or config.num_steps % config.record_every:
        raise binary.UsageError(
            f"--record_every must be a multiple of {ppo.EPOCHS} and divide --num_steps, found "
            f"{config.record_every} and {config.num_steps}"
        )
    if not 0 < config.moment < 1:
        raise binary.UsageError(f"--moment must be between 0 and 1, found {config.moment}")
    if not config.twist_noise >= 0:
        raise binary.UsageError(f"--twist_noise must be at least 0, found {config.twist_noise}")
    if config.figure == "interface" and config.objectives:
        raise binary.UsageError(
            "--figure=interface trains nothing: expected no --objectives, found "
            f"{' '.join(config.objectives)}"
        )
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def experiment(config: Config) -> None:
    """Runs everything that the figure shows, then writes and prints the results."""
    check(config)
    console = open_console()
    world = make_world(config.model, vocab_size=config.vocab_size, max_length=config.max_length)
    names = config.objectives or OBJECTIVES[config.figure]
    trained = f"{len(names)} objectives of {config.num_steps} steps" if names else "nothing"
    console.print(
        f"figure {config.figure}, {config.model}: {config.num_seeds} seeds, {trained} to train, "
        f"about {minutes(config):.1f} minutes on 2 CPU cores"
    )
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.figure}_{config.model}", config
    ) as folder:
        began = time.perf_counter()
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        if config.figure == "interface":
            steps = np.zeros(1, int)
            results: Results = interface_results(config, world, keys)
        else:
            steps = np.arange(1 + config.num_steps // config.record_every) * config.record_every
            results = _run_settings(config, world, keys, names, folder, console)
        _write(config, world, results, steps, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{config.figure}.png"
        )


def minutes(config: Config) -> float:
    """Returns a rough cost on 2 CPU cores, from measured runs: compilation and steps."""
    names = config.objectives or OBJECTIVES[config.figure]
    settings = 2 if config.figure == "constraints" else 1
    tokens = config.vocab_size**config.max_length * (1 + config.max_length)
    runs = config.num_seeds * len(config.betas) * settings * len(names)
    a_token, compilation = {"tabular": (2e-8, 5.0), "transformer": (1e-6, 12.0)}[config.model]
    return (compilation * settings * len(names) + a_token * runs * config.num_steps * tokens) / 60


def _run_settings(
    config: Config,
    world: World,
    keys: jax.Array,
    names: tuple[str, ...],
    folder: Path,
    console: Console,
) -> Results:
    """Trains the objectives and measures the samplers of all settings; prints weight warnings."""
    results: Results = {}
    for setting_name, (setting, levels) in make_settings(config, world, keys).items():
        try:
            lines = samplers.weight_warnings(config, world, setting, levels)
        except ValueError as error:
            raise binary.UsageError(f"{setting_name}: {error}") from error
        for line in lines:
            console.print(f"warning: {line}")
        methods = {name: METHODS[name] for name in names}
        results |= train(
            config, world, setting_name, setting, levels, keys, methods, folder, console
        )
        if config.figure != "collapse":
            results |= sample(config, world, setting_name, setting, levels, keys)
    return results


def _write(
    config: Config,
    world: World,
    results: Results,
    steps: np.ndarray,
    folder: Path,
    console: Console,
) -> None:
    """Writes metrics.csv, summary.json and the figure, and prints the tables."""
    rows = [
        row
        for (setting_name, objective, arm), metrics in results.items()
        for row in run_folder.metric_rows(
            setting_name, objective, arm, steps[-len(metrics["entropy"][0]) :], metrics
        )
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    summary = [summary_row(key, metrics) for key, metrics in results.items()]
    run_folder.write_json(folder / "summary.json", summary)
    plot.draw(config, world, results, steps, folder)
    for setting_name in dict.fromkeys(row["setting"] for row in summary):
        console.print(summary_table(config, setting_name, summary))


if __name__ == "__main__":
    binary.main(Config, experiment)
