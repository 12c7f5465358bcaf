"""The binary `python -m experiments.inclusive.run`, which README.md beside this file explains."""

import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.common import chunks, sources, threads
from experiments.inclusive import plot, populations, process, references, texts
from experiments.inclusive.arms import ARMS
from experiments.inclusive.config import Config
from experiments.inclusive.plan import answers_after, chunks_of
from experiments.inclusive.populations import Population
from experiments.inclusive.references import Curves
from experiments.inclusive.summary import shown_answers, summarise, tables
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

BETAS = (0.5, 0.1)


def check(config: Config) -> tuple[str, ...]:
    """Raises an error if a flag has a value that cannot be used.

    Args:
      config: the config.

    Returns:
      The arms to run.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, (*ARMS, "all"))
    if not config.arms:
        raise binary.UsageError("--arms must name at least one arm, or all")
    binary.at_least(
        config,
        num_seeds=2,
        num_members=1,
        num_steps=1,
        width=2,
        pretraining_steps=1,
        prompts_compared=1,
        answers_small=1,
        rounds_small=1,
        answers_large=1,
        rounds_large=0,
    )
    binary.positive(config, "learning_rate", "prior_scale", "member_scale")
    if config.width % texts.NUM_HEADS:
        raise binary.UsageError(
            f"--width must be a multiple of {texts.NUM_HEADS} heads, found {config.width}"
        )
    if not config.prior_answers >= 0:
        raise binary.UsageError(f"--prior_answers must be at least 0, found {config.prior_answers}")
    if config.seeds_at_once is not None:
        binary.at_least(config, seeds_at_once=1)
    return tuple(ARMS) if "all" in config.arms else config.arms


def experiment(config: Config) -> None:
    """Runs every arm, then writes and prints the results beside those of the references."""
    arms = check(config)
    threads.allow()
    console = open_console()
    population = populations.load(config)
    console.print(
        f"{config.dataset}: {len(population.prompts)} prompts, {config.num_seeds} divisions of the "
        f"people, {len(arms)} arms, about {minutes(config, population, arms):.1f} minutes on 2 CPU "
        "cores"
    )
    asked = answers_after(config)
    if population.note:
        console.print(f"note: {population.note}")
    if config.dataset != "shares":
        console.print(_resampling(population, int(asked[-1])))
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.dataset}", config, data_sha256=sources.digest(population)
    ) as folder:
        began = time.perf_counter()
        results = _run(config, population, arms, folder, console)
        fits = references.curves(population, shown_answers(config), seed=config.seed)
        pretrained = results[arms[0]]["prediction"][:, 0]
        points = references.points(population, pretrained, BETAS)
        answers = np.concatenate([[0], asked])
        rows = [
            row
            for arm, metrics in results.items()
            for row in run_folder.metric_rows(
                config.dataset,
                "ilhf",
                arm,
                answers,
                {k: v for k, v in metrics.items() if v.ndim == 2},
            )
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = summarise(config, population, results, fits, points)
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, population, results, fits, points, folder)
        for table in tables(config, population, summary):
            console.print(table)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _resampling(population: Population, budget: int) -> str:
    """Returns a line that says whether more answers are asked for than a half has people."""
    answered = (population.answers >= 0).reshape(*population.answers.shape[:2], -1).any(axis=-1)
    people = (answered & (population.weights[0] > 0)).sum(axis=1)
    over = population.asked * budget * len(population.prompts) > people
    if not over.any():
        return f"people of a half who answered a prompt: {people.min()} to {people.max()}"
    return (
        f"note: at {over.sum()} of {len(over)} prompts more answers are asked for than people of a "
        f"half gave ({people[over].min()} to {people[over].max()}): people are drawn again "
        "(resampled)"
    )


def minutes(config: Config, population: Population, arms: tuple[str, ...]) -> float:
    """Estimates the cost in minutes of 2 CPU cores, from measured runs."""
    members = sum(1 if ARMS[a].learner == "map" else config.num_members for a in arms)
    tokens = sum(35 + 8 * len(options) for options in population.options)
    rounds = len(answers_after(config))
    passes = config.num_seeds * members * tokens * rounds * (config.num_steps + 1)
    pretraining = config.pretraining_steps * tokens
    seconds = 1.5e-5 * (config.width / 16) ** 1.5 * (passes + pretraining)
    return (60.0 * len(arms) + seconds) / 60.0


def _run(
    config: Config, population: Population, arms: tuple[str, ...], folder: Path, console: Console
) -> dict[str, Curves]:
    pool, lm = texts.make_pool(population.prompts, population.options, width=config.width)
    root = jax.random.key(config.seed)
    console.print("pretraining on the texts ...")
    params = texts.pretrain(lm, root, pool, num_steps=config.pretraining_steps)
    keys = jax.random.split(jax.random.fold_in(root, 1), config.num_seeds)
    results = {}
    with progress_bar(console, len(arms) * len(answers_after(config))) as advance:
        for arm in arms:
            advance(arm, 0)
            results[arm] = chunks.run_seeds(
                process.make_process(config, arm, population, pool, lm, params),
                (keys, process.divisions_of(population)),
                folder / "arms" / arm,
                chunks_of(config, population),
                seeds_at_once=config.seeds_at_once
                or (1 if jax.default_backend() == "cpu" else None),
                progress=lambda rounds, arm=arm: advance(arm, rounds),  # type: ignore[misc]
            )
    return results


if __name__ == "__main__":
    binary.main(Config, experiment)
