"""The figure of a labelling project: its measures against the number of answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws held-out log-loss and disagreement against the number of answers.

    Args:
      history: the rows of the metrics.
      path: the PNG file to write.
    """
    answers = [row["answers"] for row in history]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    of_files = lambda name: name.endswith("/log_loss") and name.count("/") == 1  # not of groups
    names = [name for name in history[-1] if of_files(name)]
    for name in names:
        # The space is there because matplotlib hides a label that begins with _.
        label = f" {name.removesuffix('/log_loss')}"
        axes[0].plot(answers, [row.get(name, np.nan) for row in history], ".-", label=label)
    axes[0].axhline(np.log(2), color="0.7", linewidth=0.8)
    axes[0].set_ylabel("held-out log-loss a vote, nats (line: a coin)")
    if names:
        for text in axes[0].legend(frameon=False).get_texts():
            text.set_parse_math(False)  # a $ in a file's name begins no formula
    else:
        axes[0].text(0.5, 0.5, "no --eval_files", transform=axes[0].transAxes, ha="center")
    axes[1].plot(answers, [row["disagreement"] for row in history], ".-", color="tab:orange")
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("disagreement on pairs of the pool, nats")
    for axis in axes:
        axis.set_xlabel("answers")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
