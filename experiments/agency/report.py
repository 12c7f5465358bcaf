"""The results of the agency experiment: a table of numbers, intervals, a figure."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.agency.agents import Agent
from experiments.agency.config import Config
from experiments.agency.measures import RIGHT, returns
from experiments.common.intervals import format_interval, mean_interval
from shatter.cli.common import run_folder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEASURES = {
    "success": "right answers",
    "best_of_tries": "right in one of the tries",
    "return": "return",
    "actions": "actions an episode",
    "invalid": "invalid actions",
    "kl_from_reference": "KL from the reference",
}
Results = dict[str, dict[str, np.ndarray]]
"""Metrics `[S, 1 + rounds]` by the name of an arm, then their own."""


def write_results(
    config: Config, agent: Agent, results: Results, folder: Path, console: Console
) -> None:
    """Writes metrics.csv, summary.json and agency.png, and prints the tables.

    Args:
      config: the config.
      agent: the model in its world.
      results: metrics.
      folder: the run folder.
      console: where the tables are printed.
    """
    updates = np.arange(1 + config.num_rounds) * config.updates_per_round
    rows = [
        row
        for arm, metrics in results.items()
        for row in run_folder.metric_rows(config.environment, "agency", arm, updates, metrics)
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    shown = np.asarray(agent.world.pool.rewards)
    expert = {
        "success": float(np.mean(shown.max(axis=1) > RIGHT)),
        "return": float(np.mean(returns(config, agent.world.pool))),
    }
    summary: dict[str, Any] = {"expert": expert, "arms": _ends(results)}
    run_folder.write_json(folder / "summary.json", summary)
    draw(config, agent, results, expert, folder / "agency.png")
    console.print(_table(config, summary))
    if len(agent.world.held_out) > 1:
        console.print(_split_table(agent, summary))


def _ends(results: Results) -> dict[str, Any]:
    """Returns the last values of every arm, and what other arms have less, paired by seed."""
    arms = {}
    for arm, metrics in results.items():
        ends: dict[str, Any] = {name: mean_interval(metrics[name][:, -1]) for name in metrics}
        ends["trained_tokens"] = mean_interval(metrics["trained_tokens"].sum(axis=1))
        ends["success_less"] = {
            other: mean_interval(metrics["success"][:, -1] - values["success"][:, -1])
            for other, values in results.items()
            if other != arm
        }
        arms[arm] = ends
    return arms


def _table(config: Config, summary: dict[str, Any]) -> Table:
    expert = summary["expert"]
    table = Table(
        title=f"after {config.num_rounds * config.updates_per_round} updates: the expert is right "
        f"in {expert['success']:.2f} of its episodes, return {expert['return']:.2f}",
        caption=f"means over {config.num_seeds} seeds [95%]; held-out questions, "
        f"{config.num_tries} episodes each; the reference is the start of RL, or of the arm",
    )
    for name in ("arm", *MEASURES.values(), "million tokens trained on"):
        table.add_column(name)
    for arm, ends in summary["arms"].items():
        tokens = f"{ends['trained_tokens']['mean'] / 1e6:.2f}"
        table.add_row(arm, *(format_interval(ends[name]) for name in MEASURES), tokens)
    return table


def _split_table(agent: Agent, summary: dict[str, Any]) -> Table:
    table = Table(title="right answers by what is new in the question")
    for name in ("arm", *agent.world.held_out):
        table.add_column(name)
    for arm, ends in summary["arms"].items():
        found = [format_interval(ends[f"success_{split}"]) for split in agent.world.held_out]
        table.add_row(arm, *found)
    return table


def draw(
    config: Config, agent: Agent, results: Results, expert: dict[str, float], path: Path
) -> None:
    """Draws success, invalid actions and the return against updates.

    Args:
      config: the config.
      agent: the model in its world.
      results: metrics.
      expert: what the expert reaches.
      path: the file.
    """
    updates = np.arange(1 + config.num_rounds) * config.updates_per_round
    splits = list(agent.world.held_out)
    panels = ["success", *(f"success_{split}" for split in splits[1:]), "invalid", "return"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels), 4.4), constrained_layout=True
    )
    arms = list(dict.fromkeys(name.removeprefix("pretrained_") for name in results))
    colors = dict(zip(arms, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for axis, panel in zip(axes, panels, strict=True):
        for name, metrics in results.items():
            style = "-" if len(config.starts) == 1 or name.startswith("pretrained_") else ":"
            color = colors[name.removeprefix("pretrained_")]
            points = [mean_interval(values) for values in metrics[panel].T]
            middle, low, high = ([p[key] for p in points] for key in ("mean", "low", "high"))
            axis.plot(updates, middle, color=color, linestyle=style, label=name)
            axis.fill_between(updates, low, high, color=color, alpha=0.15, linewidth=0)
        switch = config.imitation_rounds * config.updates_per_round
        axis.axvline(switch, color="0.8", linewidth=0.8, zorder=0)
        if panel in expert:
            axis.axhline(expert[panel], color="0.4", linestyle="--", label="the expert")
        axis.set_xlabel(f"updates of {config.batch_size} episodes")
        axis.set_ylabel(_panel_label(panel, splits[0]))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.suptitle(f"{config.environment}: held-out questions ({config.num_seeds} seeds, 95%)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel_label(panel: str, first: str) -> str:
    if panel == "success":
        return f"right answers (new {first})"
    if panel.startswith("success_"):
        return f"right answers (new {panel.removeprefix('success_')})"
    return MEASURES[panel]
