"""`python -m experiments.exploration.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks
from experiments.common.didactic import check_documents
from experiments.common.meshes import open_mesh
from experiments.exploration import plot
from experiments.exploration.arms import ARMS, PASSIVE_CANDIDATES, baseline_of
from experiments.exploration.config import Config, Setting, settings
from experiments.exploration.process import make_process
from experiments.exploration.summary import LEVELS, summarise
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 100_000
MOST_RESPONSES = PASSIVE_CANDIDATES
SECONDS = {"tabular": (8.0, 3e-7), "transformer": (60.0, 3e-5)}  # compilation, a document's score


def check(config: Config) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, tuple(ARMS))
    if config.num_responses is not None and not 2 <= config.num_responses <= MOST_RESPONSES:
        raise binary.UsageError(
            f"--num_responses must be from 2 to {MOST_RESPONSES}, the candidates of the passive "
            f"arms, found {config.num_responses}"
        )
    binary.at_least(
        config,
        num_seeds=2,
        num_members=1,
        vocab_size=config.num_responses or 2,
        max_length=1,
        num_rounds=2,
        queries_per_round=1,
        num_candidates=config.num_responses or 2,
        num_steps=1,
        chunk_rounds=1,
    )
    for setting in settings(config, tuple(ARMS)):
        _mesh(setting.config)
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)
    binary.positive(
        config, "spread", "prior_scale", "learning_rate", "boltzmann_temperature", "level"
    )


def _mesh(config: Config) -> jax.sharding.Mesh | None:
    return open_mesh(config.mesh, num_seeds=config.num_seeds, num_members=config.num_members)


def minutes(setting: Setting, arm: str) -> float:
    """Returns the rough cost of an arm on 2 CPU cores, from measured runs."""
    config = setting.config
    members = config.num_members if ARMS[arm].learner == "ensemble" else 1
    documents = config.vocab_size**config.max_length
    scores = config.num_seeds * members * documents * config.num_rounds * (config.num_steps + 1)
    compilation, a_score = SECONDS[setting.learner]
    return (compilation + scores * a_score) / 60.0


def experiment(config: Config) -> None:
    """Runs every arm of every setting, then writes and prints the results."""
    check(config)
    console = open_console()
    plan = [(s, arm) for s in settings(config, tuple(ARMS)) for arm in _with_baselines(s)]
    cost = sum(minutes(setting, arm) for setting, arm in plan)
    console.print(
        f"figure {config.figure}: {len(plan)} runs of {config.num_seeds} seeds on "
        f"{jax.default_backend()}, about {cost:.1f} minutes on 2 CPU cores"
    )
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.figure}", config, free=("run_dir", "mesh")
    ) as folder:
        began = time.perf_counter()
        results = _run(plan, folder, console)
        rows = [
            row
            for (setting, arm), metrics in results.items()
            for row in run_folder.metric_rows(setting.name, "ilhf", arm, _queries(setting), metrics)
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [summarise(setting, arm, results, _queries(setting)) for setting, arm in plan]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, results, summary, folder)
        for table in _tables(summary):
            console.print(table)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _with_baselines(setting: Setting) -> tuple[str, ...]:
    """Returns the setting's arms, with the passive arm of every learner among them."""
    baselines = dict.fromkeys(baseline_of(arm) for arm in setting.arms)
    return tuple(dict.fromkeys((*baselines, *setting.arms)))


def _queries(setting: Setting) -> np.ndarray:
    return np.arange(setting.config.num_rounds + 1) * setting.config.queries_per_round


def _run(
    plan: list[tuple[Setting, str]], folder: Path, console: Console
) -> dict[tuple[Setting, str], dict[str, np.ndarray]]:
    results = {}
    with progress_bar(console, sum(s.config.num_rounds for s, _ in plan)) as advance:
        for setting, arm in plan:
            advance(f"{setting.name} {arm}", 0)
            config = setting.config
            results[setting, arm] = chunks.run_seeds(
                make_process(setting, arm),
                jax.random.split(jax.random.key(config.seed), config.num_seeds),
                folder / "arms" / setting.name / arm,
                chunks.equal_chunks(
                    config.num_rounds, config.queries_per_round, config.chunk_rounds
                ),
                mesh=_mesh(config),
                progress=partial(advance, f"{setting.name} {arm}"),
            )
    return results


def _tables(summary: list[dict]) -> list[Table]:
    tables = []
    for name in dict.fromkeys(row["setting"] for row in summary):
        rows = [row for row in summary if row["setting"] == name]
        table = Table(
            title=f"{name}: {rows[0]['num_seeds']} seeds, {rows[0]['budget']} queries",
            caption="median queries to a level (share of seeds that never reach it); ratio to the "
            "passive arm with the same learner [95%]; half and quarter of the pretrained KL",
        )
        table.add_column("arm")
        table.add_column("mean KL at the end", justify="right")
        for level in LEVELS:
            table.add_column(f"to {level}", justify="right")
            table.add_column("ratio", justify="right")
        for row in rows:
            cells = [f"{row['kl']:.2f} [{row['kl_low']:.2f}, {row['kl_high']:.2f}]"]
            for level in LEVELS:
                cells += [row[level]["text"], row[level]["ratio_text"]]
            table.add_row(row["arm"], *cells)
        tables.append(table)
    return tables


if __name__ == "__main__":
    binary.main(Config, experiment)
