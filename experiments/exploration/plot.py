"""The figures of the exploration experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.exploration.config import Config
from experiments.exploration.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLE: dict[str, dict[str, Any]] = {
    "uniform": {"color": "0.6", "linestyle": ":"},
    "passive": {"color": "black", "linestyle": "-"},
    "passive_map": {"color": "black", "linestyle": "--"},
    "greedy": {"color": "tab:red", "linestyle": "--"},
    "boltzmann": {"color": "tab:orange", "linestyle": "--"},
    "thompson": {"color": "tab:blue"},
    "double_thompson": {"color": "tab:cyan"},
    "double_thompson_sampled": {"color": "tab:purple"},
    "infomax": {"color": "tab:green"},
    "variance": {"color": "tab:olive"},
    "log_ratio_variance": {"color": "tab:brown"},
    "ucb": {"color": "tab:pink"},
}


def draw(config: Config, results: Results, summary: list[dict], folder: Path) -> Path:
    """Draws KL curves, a panel for each setting, and queries to half and a quarter of the KL.

    Args:
      config: the config.
      results: metrics `[S, 1 + R]` of every setting and arm.
      summary: the rows of the table.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    names = list(dict.fromkeys(setting.name for setting, _ in results))
    columns = len(names) + 2
    figure, axes = plt.subplots(
        1, columns, figsize=(4.2 * columns + 1.6, 4.2), constrained_layout=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=False):
        _curves(axis, {k: v for k, v in results.items() if k[0].name == name}, name)
    limits = np.array([axis.get_ylim() for axis in axes[0, : len(names)]])
    for axis in axes[0, : len(names)]:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    axes[0, 0].set_ylabel("KL(q || prediction), nats")
    shown = {"half": "to half of the pretrained KL", "quarter": "to a quarter of it"}
    for axis, (level, title) in zip(axes[0, -2:], shown.items(), strict=True):
        axis.set_title(title)
        if len(names) == 1:
            _bars(axis, summary, level)
        else:
            _trend(axis, summary, names, level)
    handles = {
        text: handle
        for axis in axes[0, : len(names)]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    path = folder / f"{config.figure}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _curves(axis: Any, results: Results, title: str) -> None:
    for (setting, arm), metrics in results.items():
        curves = metrics["kl"]
        queries = np.arange(curves.shape[1]) * setting.config.queries_per_round
        mean, error = curves.mean(axis=0), 1.96 * curves.std(axis=0, ddof=1) / len(curves) ** 0.5
        (line,) = axis.plot(queries, mean, label=arm, **STYLE[arm])
        axis.fill_between(queries, mean - error, mean + error, color=line.get_color(), alpha=0.12)
    start = next(iter(results.values()))["pretrained_kl"][:, 0].mean()
    axis.axhline(start, color="0.7", linewidth=0.8)
    axis.set(title=title, xlabel="comparisons asked", yscale="log")


def _bars(axis: Any, summary: list[dict], level: str) -> None:
    rows = sorted(summary, key=lambda row: row[level]["median_queries"], reverse=True)
    for y, row in enumerate(rows):
        axis.barh(
            y,
            row[level]["median_queries"],
            color=STYLE[row["arm"]]["color"],
            edgecolor="white",
            hatch="//" if row[level]["censored"] >= 0.5 else None,
        )
    axis.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axis.set(xlabel="comparisons (hatched: not reached)")


def _trend(axis: Any, summary: list[dict], names: list[str], level: str) -> None:
    for arm in dict.fromkeys(row["arm"] for row in summary):
        rows = [row for row in summary if row["arm"] == arm]
        positions = np.array([names.index(row["setting"]) for row in rows])
        medians = np.array([row[level]["median_queries"] for row in rows])
        censored = np.array([row[level]["censored"] >= 0.5 for row in rows])
        axis.plot(positions, medians, marker=".", **STYLE[arm])
        color = STYLE[arm]["color"]
        axis.plot(positions[censored], medians[censored], "^", color=color, markersize=9)
    axis.set_xticks(range(len(names)), [name.split("=")[1] for name in names])
    axis.set(
        xlabel=names[0].split("=")[0], ylabel="comparisons (triangle: not reached)", yscale="log"
    )
