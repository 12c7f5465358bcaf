"""`python -m experiments.rlhf.run`: see README.md beside this file."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.common import chunks, threads
from experiments.common.didactic import check_documents
from experiments.inclusive import texts
from experiments.rlhf import plot
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, make_domain
from experiments.rlhf.objectives import OBJECTIVES
from experiments.rlhf.process import make_process
from experiments.rlhf.rollouts import PPO_EPOCHS
from experiments.rlhf.summary import Results, curves_of, summary_row, summary_tables
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 5_000
CHUNKS = 5  # of a run, with a checkpoint after each


class ChunkEnd(NamedTuple):
    """When a chunk ended, in seconds of the clock, and its number of rounds."""

    seconds: float
    rounds: int


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("objective", config.objectives, tuple(OBJECTIVES))
    binary.at_least(
        config,
        num_seeds=2,
        num_comparisons=1,
        batch_size=2,
        record_every=PPO_EPOCHS,
        vocab_size=2,
        max_length=1,
        width=texts.NUM_HEADS,
        pretraining_steps=1,
    )
    binary.positive(config, "learning_rate", "slic_delta", "kl_target", "spread", "betas")
    for name in ("ilhf_lambda", "slic_regulariser"):
        if not getattr(config, name) >= 0:
            raise binary.UsageError(f"--{name} must be at least 0, found {getattr(config, name)}")
    if not 0 < config.minority < 1:
        raise binary.UsageError(f"--minority must be between 0 and 1, found {config.minority}")
    if config.seeds_at_once is not None:
        binary.at_least(config, seeds_at_once=1)
    if config.width % texts.NUM_HEADS:
        raise binary.UsageError(
            f"--width must be a multiple of {texts.NUM_HEADS}, found {config.width}"
        )
    if config.record_every % PPO_EPOCHS or config.num_steps % (2 * config.record_every):
        raise binary.UsageError(
            f"--record_every must be a multiple of {PPO_EPOCHS}, and --num_steps of twice "
            f"--record_every, found {config.record_every} and {config.num_steps}"
        )
    if config.population == "didactic":
        check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def experiment(config: Config) -> None:
    """Trains every objective, then writes and prints the results."""
    check(config)
    threads.allow()
    console = open_console()
    names = config.objectives or tuple(OBJECTIVES)
    console.print(
        f"{config.population}, {config.model}: {len(names)} objectives, {config.num_seeds} seeds, "
        f"{config.num_comparisons} comparisons, {config.num_steps} gradient steps each"
    )
    began = time.perf_counter()
    domain = make_domain(config)
    if domain.note:
        console.print(f"note: {domain.note}")
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.population}_{config.model}", config
    ) as folder:
        results, seconds = _train(config, domain, names, folder, console)
        steps = np.arange(1 + config.num_steps // config.record_every) * config.record_every
        rows = [
            row
            for (objective, arm), metrics in results.items()
            for row in run_folder.metric_rows(
                config.population, objective, arm, steps, curves_of(metrics)
            )
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [
            summary_row(objective, arm, metrics, steps, seconds[objective])
            for (objective, arm), metrics in results.items()
        ]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, results, steps, folder)
        for table in summary_tables(config, domain, summary):
            console.print(table)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _train(
    config: Config, domain: Domain, names: tuple[str, ...], folder: Path, console: Console
) -> tuple[Results, dict[str, float | None]]:
    """Trains every objective; returns the results, and the seconds that a gradient step takes.

    The seconds are those of one run after compilation; None where they cannot be measured.
    """
    num_rounds = config.num_steps // config.record_every
    plan = chunks.equal_chunks(num_rounds, 1, -(-num_rounds // CHUNKS))
    keys = jax.random.split(jax.random.key(config.seed + 1), config.num_seeds)
    at_once = config.seeds_at_once
    if at_once is None and config.model == "transformer" and jax.default_backend() == "cpu":
        at_once = 1
    results: Results = {}
    seconds: dict[str, float | None] = {}
    with progress_bar(console, len(names) * num_rounds) as advance:
        for name in names:
            advance(name, 0)
            objective = OBJECTIVES[name]
            betas = config.betas if objective.knows_beta else config.betas[:1]
            inputs = _repeated((domain.inputs, keys), betas)
            ends: list[ChunkEnd] = []
            path = folder / "arms" / name

            def progress(rounds: int, name: str = name, ends: list[ChunkEnd] = ends) -> None:
                ends.append(ChunkEnd(time.perf_counter(), rounds))
                advance(name, rounds)

            metrics = chunks.run_seeds(
                make_process(config, domain, objective),
                inputs,
                path,
                plan,
                seeds_at_once=at_once,
                progress=progress,
            )
            file = path / "seconds.json"
            seconds[name] = _seconds_a_step(file, ends, config, len(inputs[2]))
            for place, beta in enumerate(betas):
                rows = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
                arm = f"beta={beta:g}" if objective.knows_beta else "no beta"
                results[name, arm] = {k: v[rows] for k, v in metrics.items()}
    return results, seconds


def _repeated(of_seeds: tuple[Any, jax.Array], betas: tuple[float, ...]) -> tuple:
    """Returns the inputs of all seeds at the first beta, then at the next one, and so on."""
    repeat = lambda leaf: jnp.concatenate([leaf] * len(betas))
    num_seeds = len(of_seeds[1])
    return (*jax.tree.map(repeat, of_seeds), jnp.repeat(jnp.asarray(betas), num_seeds))


def _seconds_a_step(
    file: Path, ends: list[ChunkEnd], config: Config, num_runs: int
) -> float | None:
    """Returns the seconds that a gradient step of one run takes.

    They are measured over the chunks after the first, because the first one compiles.
    """
    if file.exists():
        return run_folder.read_json(file, float)
    if len(ends) < 2:
        return None
    rounds = sum(end.rounds for end in ends[1:])
    value = (ends[-1].seconds - ends[0].seconds) / (rounds * config.record_every * num_runs)
    run_folder.write_json(file, value)
    return value


if __name__ == "__main__":
    binary.main(Config, experiment)
