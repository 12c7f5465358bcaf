"""`python -m experiments.judgements.run`: objectives side by side on human judgements."""

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import model_folder
from experiments.judgements import baselines
from experiments.judgements.datasets import DATASETS, load_judgements
from shatter import data
from shatter.cli.common import binary, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.finetune import run
from shatter.cli.finetune.config import Config as RunConfig
from shatter.cli.finetune.config import check as check_run
from shatter.cli.finetune.task import Task, check_devices, load_model, make_task

METHODS: dict[str, dict[str, Any]] = {
    "ilhf_mean": {"objective": "ilhf", "utility": "mean", "learning_rate": 1e-3},
    "ilhf_sum": {"objective": "ilhf", "utility": "sum", "learning_rate": 1e-3},
    "dpo": {"objective": "dpo", "learning_rate": 3e-4},
    "reward_model": {"objective": "reward_model", "learning_rate": 1e-3},
}
"""What differs between the methods; everything else is the same for all. Learning rates were chosen
for each among 1e-3 and 3e-4 on one division of ukp_humour (seed 1000)."""

PARTS = ("known", "new")


@dataclasses.dataclass(frozen=True)
class Config:
    """Can a small pretrained language model learn what people judge better?

    Fine-tunes the model on one part of a data set of human judgements by several objectives, at
    equal data and steps, and judges on held-out comparisons: of items that were shown (known) and
    of items that were not (new). Beside them Bradley-Terry, an n-gram model and text length.
    """

    dataset_name: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Known: ilhf_mean (utility: a scaled mean log-prob of a token), ilhf_sum (the literal log-prob
    of the text), dpo, reward_model."""

    run_dir: str = "runs/finetune_compare"
    """Where the runs go, a folder a data set; a run that is complete is only read."""

    model_name_or_path: str = "stories260k"
    """The pretrained model."""

    data_dir: str | None = None
    """Folder with the human judgements and stories260k; SHATTER_DATA_DIR if not given."""

    num_seeds: int = 10
    """Seeds: each has its own division of the items, order of the data and keys."""

    first_seed: int = 0
    """The first of them."""

    num_train_epochs: float = 2.0
    """Passes over the data."""

    per_device_train_batch_size: int = 64
    """Comparisons a step."""

    max_length: int = 96
    """Tokens of a text; longer ones are cut."""

    weight_decay: float = 0.01
    """AdamW's."""

    beta: float = 0.1
    """dpo: KL coefficient."""

    kl_weight: float = 0.0
    """ilhf: weight of KL(reference || model) for one comparison."""


def check(config: Config) -> None:
    """Refuses values that cannot be.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset_name,), DATASETS)
    binary.choose("method", config.methods, tuple(METHODS))
    if not config.methods:
        raise UsageError(f"--methods must name one at least of {', '.join(METHODS)}, found none")
    most = binary.LARGEST_WHOLE - config.first_seed + 1
    ranges = {"first_seed": binary.whole(0), "num_seeds": binary.whole(1, most)}
    binary.check_ranges(config, ranges)
    for method in config.methods:  # the other flags are those of a run, under the same names
        check_run(run_config(config, method, config.first_seed))


def run_config(config: Config, method: str, seed: int) -> RunConfig:
    """The config of one fine-tuning run."""
    changes = dict(METHODS[method])
    if changes["objective"] == "ilhf":
        changes["kl_weight"] = config.kl_weight
    return RunConfig(
        model_name_or_path=model_folder(config.model_name_or_path, config.data_dir),
        dataset_name=config.dataset_name,
        output_dir=str(Path(config.run_dir) / config.dataset_name / method / f"seed{seed}"),
        seed=seed,
        num_train_epochs=config.num_train_epochs,
        warmup_ratio=0.1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=128,
        num_devices=1,
        max_length=config.max_length,
        weight_decay=config.weight_decay,
        beta=config.beta,
        logging_steps=25,
        **changes,
    )


def load_task(config: Config, settings: RunConfig) -> tuple[Task, str]:
    """Returns what one run works on, its own division of the data set, and whom to name."""
    check_devices(settings)
    model = load_model(settings)
    found = load_judgements(config.dataset_name, seed=settings.seed, data_dir=config.data_dir)
    rows = {"train": found.train, "known": found.known, "new": found.new}
    reports = {name: data.Report(read=len(split)) for name, split in rows.items()}
    return make_task(settings, model, rows, reports), found.attribution


def experiment(config: Config) -> None:
    """Runs every method and seed, then writes and prints the table and the figure."""
    check(config)
    folder = Path(config.run_dir) / config.dataset_name
    with alone(folder, "--run_dir"):
        _compare(config, folder)


def _compare(config: Config, folder: Path) -> None:
    console = open_console()
    runs = [(m, s) for s in range(config.num_seeds) for m in config.methods]
    measured: dict[str, list[dict[str, float]]] = {}
    with progress_bar(console, len(runs)) as advance:
        for method, offset in runs:
            seed = config.first_seed + offset
            settings = run_config(config, method, seed)
            task, attribution = load_task(config, settings)
            name = f"{method}, seed {seed}"
            advance(name, 0)
            say = lambda message, steps, name=name: advance(f"{name}: {message}", 0)
            summary = run.finetune(settings, task, say)
            measured.setdefault(method, []).append(summary["after"])
            measured.setdefault(f"pretrained, {method}", []).append(summary["before"])
            if method == config.methods[0]:
                for kind, scores in _baselines(config, folder, seed).items():
                    measured.setdefault(kind, []).append(scores)
            advance(name, 1)
    rows = _summarise(measured)
    run_folder.write_json(folder / "summary.json", rows)
    run_folder.write_csv(folder / "metrics.csv", _csv_rows(config, measured))
    _draw(config, measured, folder / "compare.png")
    console.print(_table(config, rows))
    console.print(f"Results in {folder}: summary.json, metrics.csv, compare.png, a folder a run")
    console.print(f"Data: {attribution}")


def _baselines(config: Config, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Scores of the baselines on the same division; kept in a file. Ties teach them nothing too."""
    file = folder / "baselines" / f"seed{seed}.json"
    if not file.exists():
        found = load_judgements(config.dataset_name, seed=seed, data_dir=config.data_dir)
        named: dict[str, dict[str, float]] = {}
        for (part, name), scores in baselines.baseline_scores(found, ties=0.0).items():
            values = {f"eval_{part}/{measure}": value for measure, value in scores.items()}
            named[name] = named.get(name, {}) | values
        file.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(file, named)
    return run_folder.read_json(file)


def _summarise(measured: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Means over the seeds that have a measure; one that none has is absent."""
    return {
        method: {
            name: mean_interval(np.asarray([row[name] for row in found if name in row]))
            for name in dict.fromkeys(name for row in found for name in row)
            if name not in ("step", "epoch")
        }
        for method, found in measured.items()
    }


def _csv_rows(config: Config, measured: dict[str, list[dict[str, float]]]) -> Any:
    for method, found in measured.items():
        for offset, row in enumerate(found):
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
    for part in PARTS:
        for name in names:
            table.add_column(f"{part} {name}", justify="right")
    table.add_column("KL(pi || p0)", justify="right")
    for method, found in rows.items():
        cells = [found.get(f"eval_{part}/{key}") for part in PARTS for key in names.values()]
        table.add_row(method, *map(format_interval, cells), format_interval(found.get("kl")))
    return table


def _draw(config: Config, measured: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Log-loss on known and new items, a dot a seed and a bar for the mean."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    methods = list(measured)
    for axis, part in zip(axes, PARTS, strict=True):
        name = f"eval_{part}/log_loss"
        for position, method in enumerate(methods):
            found = [row[name] for row in measured[method] if name in row]
            if not found:
                continue
            clipped = np.minimum(found, 1.0)
            axis.plot(clipped, np.full(len(found), position), ".", color="tab:blue", alpha=0.5)
            axis.plot([np.mean(clipped)], [position], "|", color="black", markersize=14)
            if np.mean(found) > 1:
                axis.text(0.99, position, f"{np.mean(found):.1f} ", ha="right", va="center")
        axis.axvline(np.log(2), color="0.7", linewidth=0.8)
        axis.set_xlabel("log-loss a vote, nats (bar: mean; line: a coin)")
        axis.set_title(f"{part} items", loc="left")
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.suptitle(f"{config.dataset_name}: held-out judgements")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    binary.main(Config, experiment)
