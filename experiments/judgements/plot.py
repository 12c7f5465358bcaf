"""The figure of the comparison: held-out log-loss by method."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.judgements.config import Config

PARTS = ("known", "new")


def draw(config: Config, measured: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draws the log-loss on known and on new items, a dot for each seed and a bar for the mean.

    Args:
      config: the config.
      measured: measures of every seed by method.
      path: the PNG file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    methods = list(measured)
    for axis, part in zip(axes, PARTS, strict=True):
        name = f"eval_{part}/log_loss"
        for position, method in enumerate(methods):
            losses = [row[name] for row in measured[method] if name in row]
            if not losses:
                continue
            clipped = np.minimum(losses, 1.0)
            axis.plot(clipped, np.full(len(losses), position), ".", color="tab:blue", alpha=0.5)
            axis.plot([np.mean(clipped)], [position], "|", color="black", markersize=14)
            if np.mean(losses) > 1:
                axis.text(0.99, position, f"{np.mean(losses):.1f} ", ha="right", va="center")
        axis.axvline(np.log(2), color="0.7", linewidth=0.8)
        axis.set_xlabel("log-loss, nats a vote (bar: mean; line: a coin)")
        axis.set_title(f"{part} items", loc="left")
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.suptitle(f"{config.dataset_name}: held-out judgements")
    figure.savefig(path, dpi=130)
    plt.close(figure)
