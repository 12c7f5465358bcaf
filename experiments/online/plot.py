"""The figure: a panel for each measure, a curve for each arm."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.online.measures import MEASURES
from experiments.online.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "passive": "black",
    "pool_infomax": "tab:olive",
    "sampled": "tab:orange",
    "thompson": "tab:blue",
    "double_thompson": "tab:cyan",
    "infomax": "tab:green",
    "v_optimal": "tab:red",
    "offline": "0.5",
    "periodic": "tab:brown",
    "online": "tab:purple",
    "information_directed": "tab:pink",
    "dpo_offline": "gold",
    "dpo_online": "navy",
}
TITLES = {
    "kl": "KL(q || who speaks), nats",
    "entropy": "entropy of who speaks, nats",
    "kl_majority": "KL(majority || who speaks), nats",
    "kl_minority": "KL(minority || who speaks), nats",
    "win_rate": "win rate of samples over the base's",
    "win_greedy": "win rate of greedy decoding over the base's",
    "choice_loss_base": "choice log-loss, samples of p0",
    "tilt": "mean log q / p0 of samples, nats",
    "distinct": "different bigrams, share",
}


def draw(setting: str, results: Results, queries: np.ndarray, folder: Path) -> Path:
    """Draws the main measures against comparisons asked: means and 95% intervals over seeds.

    Args:
      setting: its name.
      results: metrics `[S, 1 + R]` by arm.
      queries: `[1 + R]`.
      folder: where the PNG goes.

    Returns:
      Its path.
    """
    names = MEASURES[setting]
    figure, axes = plt.subplots(2, 3, figsize=(11.0, 6.2), constrained_layout=True)
    for axis, name in zip(axes.ravel(), names, strict=True):
        for arm, metrics in results.items():
            _curve(axis, queries, metrics[name], arm)
        for shown, style in ((f"base_{name}", ":"), (f"q_{name}", "--")):
            metrics = next(iter(results.values()))
            if shown in metrics:
                level = metrics[shown][:, 0].mean()
                axis.axhline(level, color="0.6", linestyle=style, linewidth=1.0)
        axis.set_title(TITLES[name], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("comparisons asked")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(len(labels), 7)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{setting}: dotted the base, dashed the population's law q", fontsize=10)
    path = folder / "online.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _curve(axis: Any, queries: np.ndarray, curves: np.ndarray, arm: str) -> None:
    mean, error = curves.mean(axis=0), 1.96 * curves.std(axis=0, ddof=1) / len(curves) ** 0.5
    axis.plot(queries, mean, label=arm, color=COLORS[arm])
    axis.fill_between(queries, mean - error, mean + error, color=COLORS[arm], alpha=0.15)
