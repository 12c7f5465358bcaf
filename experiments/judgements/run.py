"""`python -m experiments.judgements.run`: objectives compared on human judgements.

README.md in this folder has the claim, the results and the cost.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import model_folder
from experiments.judgements import baselines, plot
from experiments.judgements.config import Config, check, run_config
from experiments.judgements.datasets import load_judgements
from shatter import data
from shatter.cli.common import binary, run_folder
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.finetune import places, run
from shatter.cli.finetune.config import Config as RunConfig
from shatter.cli.finetune.pretrained import load_model
from shatter.cli.finetune.task import Task, make_task

Measured = dict[str, list[dict[str, float]]]
"""Measures of every seed, by method."""


def experiment(config: Config) -> None:
    """Runs every method and seed, then writes and prints the table and the figure."""
    check(config)
    folder = Path(config.run_dir) / config.dataset_name
    with alone(folder, "--run_dir"):
        console = open_console()
        with progress_bar(console, config.num_seeds * len(config.methods)) as advance:
            measured, attribution = _measure(config, folder, advance)
        rows = _summarise(measured)
        run_folder.write_json(folder / "summary.json", rows)
        run_folder.write_csv(folder / "metrics.csv", _csv_rows(config, measured))
        plot.draw(config, measured, folder / "compare.png")
        console.print(_table(config, rows))
        console.print(
            f"Results in {folder}: summary.json, metrics.csv, compare.png, a folder a run"
        )
        console.print(f"Data: {attribution}")


def load_task(config: Config, settings: RunConfig) -> tuple[Task, str]:
    """Opens the model and divides the data set for one run.

    Args:
      config: the config of the comparison.
      settings: the config of the run.

    Returns:
      The run's task, and whom to name when figures of the data are shown.
    """
    places.mesh_of(settings)
    folder = model_folder(settings.model_name_or_path, config.data_dir)
    model = load_model(dataclasses.replace(settings, model_name_or_path=folder))
    judgements = load_judgements(config.dataset_name, seed=settings.seed, data_dir=config.data_dir)
    rows = {"train": judgements.train, "known": judgements.known, "new": judgements.new}
    reports = {name: data.Report(read=len(split)) for name, split in rows.items()}
    return make_task(settings, model, rows, reports), judgements.attribution


def _measure(config: Config, folder: Path, advance: Any) -> tuple[Measured, str]:
    """Runs every method and seed, and the baselines beside the first method."""
    measured: Measured = {}
    attribution = ""
    for seed in range(config.first_seed, config.first_seed + config.num_seeds):
        for method in config.methods:
            settings = run_config(config, method, seed)
            task, attribution = load_task(config, settings)
            name = f"{method}, seed {seed}"
            advance(name, 0)
            show = lambda message, steps, name=name: advance(f"{name}: {message}", 0)
            summary = run.finetune(settings, task, show)
            measured.setdefault(method, []).append(summary["after"])
            measured.setdefault(f"pretrained, {method}", []).append(summary["before"])
            if method == config.methods[0]:
                for baseline, scores in _baselines(config, folder, seed).items():
                    measured.setdefault(baseline, []).append(scores)
            advance(name, 1)
    return measured, attribution


def _baselines(config: Config, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Scores the baselines on the same division, or reads their scores from a file.

    They do not learn from ties, as the other methods do not.
    """
    file = folder / "baselines" / f"seed{seed}.json"
    if not file.exists():
        judgements = load_judgements(config.dataset_name, seed=seed, data_dir=config.data_dir)
        named: dict[str, dict[str, float]] = {}
        for (part, name), scores in baselines.baseline_scores(judgements, ties=0.0).items():
            values = {f"eval_{part}/{measure}": value for measure, value in scores.items()}
            named[name] = named.get(name, {}) | values
        run_folder.write_json(file, named)
    return run_folder.read_json(file)


def _summarise(measured: Measured) -> dict[str, dict[str, Any]]:
    """Returns means over the seeds that have a measure; a measure that none has is absent."""
    return {
        method: {
            name: mean_interval(np.asarray([row[name] for row in rows if name in row]))
            for name in dict.fromkeys(name for row in rows for name in row)
            if name not in ("step", "epoch")
        }
        for method, rows in measured.items()
    }


def _csv_rows(config: Config, measured: Measured) -> Iterator[tuple]:
    for method, rows in measured.items():
        for offset, row in enumerate(rows):
            start = (config.dataset_name, method, "", config.first_seed + offset)
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    yield *start, int(row.get("step", 0)), name, f"{value:.8g}"


def _table(config: Config, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title=f"{config.dataset_name}: means over {config.num_seeds} seeds [95%]",
        caption="log-loss: nats a vote that decides; accuracy: of pairs with a majority; error: "
        "expected calibration error; KL from the pretrained model in nats a document",
    )
    table.add_column("method")
    names = {"log-loss": "log_loss", "accuracy": "accuracy", "error": "calibration_error"}
    for part in plot.PARTS:
        for name in names:
            table.add_column(f"{part} {name}", justify="right")
    table.add_column("KL(pi || p0)", justify="right")
    for method, means in rows.items():
        cells = [means.get(f"eval_{part}/{key}") for part in plot.PARTS for key in names.values()]
        table.add_row(method, *map(format_interval, cells), format_interval(means.get("kl")))
    return table


if __name__ == "__main__":
    binary.main(Config, experiment)
