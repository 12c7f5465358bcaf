"""The figure of a run with several seeds: its measures against the number of answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw(histories: Sequence[Sequence[dict[str, Any]]], path: Path) -> None:
    """Draws held-out log-loss and disagreement of every seed, and their means over seeds.

    Args:
      histories: the rows of the metrics, of every seed.
      path: the PNG file to write.
    """
    num_rows = min(map(len, histories))
    answers = [row["answers"] for row in histories[0][:num_rows]]
    names = [name for name in histories[0][-1] if name.endswith("/log_loss")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for axis, measures in zip(axes, (names, ["disagreement"]), strict=True):
        for n, name in enumerate(measures):
            curves = np.array(
                [[row.get(name, np.nan) for row in rows[:num_rows]] for rows in histories]
            )
            color = f"C{n}" if axis is axes[0] else "tab:orange"
            axis.plot(answers, curves.T, color=color, alpha=0.25, linewidth=0.7)
            # The space is there because matplotlib hides a label that begins with _.
            label = f" {name.removesuffix('/log_loss')}, mean of {len(histories)} seeds"
            axis.plot(answers, curves.mean(axis=0), ".-", color=color, label=label)
        axis.set_xlabel("answers")
        axis.spines[["top", "right"]].set_visible(False)
        for text in axis.legend(frameon=False).get_texts() if measures else ():
            text.set_parse_math(False)  # a $ in a file's name begins no formula
    axes[0].axhline(np.log(2), color="0.7", linewidth=0.8)
    axes[0].set_ylabel("held-out log-loss a vote, nats (line: a coin)")
    axes[1].set_ylabel("disagreement on pairs of the pool, nats")
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
