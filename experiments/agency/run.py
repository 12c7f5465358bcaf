"""`python -m experiments.agency.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.agency.config import ARMS, Config
from experiments.agency.process import Setting, agency_process, demonstrations, make_setting
from experiments.common.chunks import equal_chunks, run_seeds
from experiments.common.intervals import format_interval, mean_interval
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEASURES = {
    "success": "right answers",
    "best_of_tries": "right in one of the tries",
    "return": "return",
    "actions": "actions an episode",
    "invalid": "invalid actions",
    "kl_from_reference": "KL from the start of RL",
}


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, ARMS)
    binary.at_least(
        config,
        num_seeds=2,
        num_operations=1,
        max_operand=2,
        num_demonstrations=1,
        width=4,
        num_layers=1,
        num_rounds=2,
        imitation_rounds=1,
        updates_per_round=1,
        num_samples=2,
        num_evaluated=1,
        num_tries=1,
        chunk_rounds=1,
    )
    binary.at_least(config, batch_size=config.num_samples)
    binary.positive(config, "learning_rate", "rl_rate")
    if config.width % 4:
        raise binary.UsageError(f"--width must be a multiple of 4, found {config.width}")
    if config.imitation_rounds >= config.num_rounds:
        raise binary.UsageError(
            f"--imitation_rounds must be below --num_rounds={config.num_rounds}, so that RL has "
            f"rounds too, found {config.imitation_rounds}"
        )
    if config.batch_size % config.num_samples:
        raise binary.UsageError(
            f"--batch_size must be a multiple of --num_samples={config.num_samples}, found "
            f"{config.batch_size}"
        )
    if not 0 <= config.quality <= 1 or not 0 <= config.price < 0.5 or not config.beta >= 0:
        raise binary.UsageError(
            "expected --quality from 0 to 1, --price from 0 to below .5 and --beta of at least 0, "
            f"found {config.quality}, {config.price} and {config.beta}"
        )


def experiment(config: Config) -> None:
    """Runs every arm, then writes and prints the results."""
    check(config)
    console = open_console()
    try:
        setting = make_setting(config)
    except ValueError as error:
        raise binary.UsageError(f"--num_operations, --max_operand: {error}") from error
    updates = config.num_rounds * config.updates_per_round
    console.print(
        f"agency: {config.num_seeds} seeds, arms {', '.join(config.arms)}; {updates} updates of "
        f"{config.batch_size} episodes each, about {minutes(config):.0f} minutes on 2 CPU cores"
    )
    free = ("run_dir", "arms")
    with run_folder.open_run_folder(config.run_dir, config, free=free) as folder:
        began = time.perf_counter()
        results = {}
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        plan = equal_chunks(config.num_rounds, config.updates_per_round, config.chunk_rounds)
        with progress_bar(console, len(config.arms) * config.num_rounds) as advance:
            for arm in dict.fromkeys(config.arms):
                advance(arm, 0)
                results[arm] = run_seeds(
                    agency_process(setting, arm),
                    keys,
                    folder / "arms" / arm,
                    plan,
                    progress=partial(advance, arm),
                )
        _write(setting, results, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            "agency.png"
        )


def minutes(config: Config) -> float:
    """Returns a rough cost on 2 CPU cores, from measured runs."""
    updates = config.num_rounds * config.updates_per_round
    lanes = config.num_seeds * config.batch_size * updates / 512_000
    size = config.width * config.width * config.num_layers / 2_048
    return len(config.arms) * (0.5 + 10.0 * lanes * size * config.num_operations / 2)


def _expert_success(setting: Setting) -> float:
    """Returns how often the expert's demonstrations are right, from 2,000 of them."""
    shown = jax.jit(partial(demonstrations, setting, number=2_000))(jax.random.key(1))
    return float(np.mean(np.asarray(shown.rewards).max(axis=1) > 0.5))


def _write(
    setting: Setting, results: dict[str, dict[str, np.ndarray]], folder: Path, console: Console
) -> None:
    """Writes metrics.csv, summary.json and the figure, and prints the table."""
    config = setting.config
    updates = np.arange(1 + config.num_rounds) * config.updates_per_round
    rows = [
        row
        for arm, metrics in results.items()
        for row in run_folder.metric_rows("arithmetic", "agency", arm, updates, metrics)
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    expert = _expert_success(setting)
    summary: dict[str, Any] = {"expert_success": expert, "arms": {}}
    for arm, metrics in results.items():
        ends = {name: mean_interval(metrics[name][:, -1]) for name in metrics}
        less = {
            other: mean_interval(metrics["success"][:, -1] - values["success"][:, -1])
            for other, values in results.items()
            if other != arm
        }
        summary["arms"][arm] = ends | {"success_less": less}
    run_folder.write_json(folder / "summary.json", summary)
    _draw(config, results, updates, expert, folder / "agency.png")
    console.print(_table(config, summary))


def _table(config: Config, summary: dict[str, Any]) -> Table:
    table = Table(
        title=f"after {config.num_rounds * config.updates_per_round} updates: the expert is right "
        f"in {summary['expert_success']:.2f} of its episodes",
        caption=f"means over {config.num_seeds} seeds [95%]; held-out questions, "
        f"{config.num_tries} episodes each; without RL the KL is that from the random start",
    )
    table.add_column("arm")
    for label in MEASURES.values():
        table.add_column(label)
    for arm, ends in summary["arms"].items():
        table.add_row(arm, *(format_interval(ends[name]) for name in MEASURES))
    return table


def _draw(
    config: Config,
    results: dict[str, dict[str, np.ndarray]],
    updates: np.ndarray,
    expert: float,
    path: Path,
) -> None:
    """Draws success, invalid actions and the return against updates."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), constrained_layout=True)
    colors = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, name in zip(axes, ("success", "invalid", "return"), strict=True):
        for color, (arm, metrics) in zip(colors, results.items(), strict=False):
            points = [mean_interval(values) for values in metrics[name].T]
            middle, low, high = ([p[key] for p in points] for key in ("mean", "low", "high"))
            axis.plot(updates, middle, color=color, label=arm)
            axis.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_xlabel(f"updates of {config.batch_size} episodes")
        axis.set_ylabel(MEASURES[name])
    axes[0].axhline(expert, color="0.4", linestyle=":", label="the expert")
    if "imitation_rl" in results:
        for axis in axes:
            switch = config.imitation_rounds * config.updates_per_round
            axis.axvline(switch, color="0.8", linewidth=0.8, zorder=0)
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"arithmetic with a calculator, held-out questions ({config.num_seeds} seeds, 95%)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    binary.main(Config, experiment)
