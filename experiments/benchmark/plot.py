"""The figure of the benchmark."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Draws a panel for each group: the time of every way as a ratio to the first way.

    Args:
      rows: the rows of the table.
      folder: the PNG is written to this folder.

    Returns:
      The PNG's path.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8, 1.5 * len(groups) + 0.5), constrained_layout=True, squeeze=False
    )
    for axis, name in zip(axes[:, 0], groups, strict=True):
        _bars(axis, [row for row in rows if row["group"] == name], name)
    axes[-1, 0].set_xlabel("time over that of the first row (bar: median, line: range)")
    path = folder / "benchmark.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _bars(axis: Any, rows: list[dict[str, Any]], title: str) -> None:
    medians = [row["ratio"] for row in rows]
    below = [row["ratio"] - row["ratio_low"] for row in rows]
    above = [row["ratio_high"] - row["ratio"] for row in rows]
    colors = ["0.6" if row is rows[0] else "tab:blue" for row in rows]
    axis.barh(range(len(rows)), medians, xerr=(below, above), color=colors, ecolor="black")
    axis.axvline(1.0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [row["way"] for row in rows])
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=10)
