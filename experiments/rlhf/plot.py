"""The figure of the rlhf experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.rlhf.config import Config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "ilhf": "tab:pink",
    "rlhf": "tab:purple",
    "rlhf_adaptive": "0.5",
    "rm_posterior": "black",
    "dpo": "tab:brown",
    "ipo": "tab:olive",
    "slic": "tab:orange",
}
STYLES = ("-", "--", ":", "-.")
Results = dict[tuple[str, str], dict[str, np.ndarray]]


def draw(config: Config, results: Results, steps: np.ndarray, folder: Path) -> Path:
    """Draws KL(q || pi) over training, win rate against log score, and over-optimisation.

    Args:
      config: the config.
      results: metrics `[S, 1 + R, ...]` by objective and arm.
      steps: `[1 + R]`, gradient steps.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    figure, axes = plt.subplots(1, 3, figsize=(18, 4.8), constrained_layout=True)
    arms = [f"beta={beta:g}" for beta in config.betas]
    for (objective, arm), metrics in results.items():
        line = STYLES[arms.index(arm) % len(STYLES)] if arm in arms else "-"
        label = f"{objective}, {arm}" if arm in arms else objective
        color = COLORS[objective]
        axes[0].plot(steps, metrics["kl"].mean(axis=0), color=color, linestyle=line, label=label)
        axes[1].plot(
            metrics["log_score"][:, -1].mean(),
            metrics["win_rate"][:, -1].mean(),
            "o^sD"[arms.index(arm) % 4] if arm in arms else "*",
            color=color,
            markersize=9,
        )
    axes[0].set_yscale("log")
    axes[0].set_title("KL(q || pi), nats")
    axes[0].set_xlabel("gradient steps")
    axes[1].set_title("what each measure rewards, at the end")
    axes[1].set_xlabel("log score E_q log pi: inclusion")
    axes[1].set_ylabel("win rate against the pretrained model")
    _over_optimisation(axes[2], results)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path = folder / "rlhf.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _over_optimisation(axis: Any, results: Results) -> None:
    """Gold and learned reward of the exact posterior of the learned reward, beta falling."""
    curves = [metrics for metrics in results.values() if "gold_curve" in metrics]
    axis.set_title("over-optimisation of the learned reward")
    axis.set_xlabel("KL(pi || p0), nats")
    axis.set_ylabel("reward gained")
    if not curves:
        axis.text(0.5, 0.5, "no rm_posterior in this run", ha="center", transform=axis.transAxes)
        return
    last = {name: curves[0][name][:, -1] for name in ("kl_curve", "gold_curve", "learned_curve")}
    grid = np.linspace(0, last["kl_curve"].max(axis=1).min(), 80)
    for name, text, color in (
        ("learned_curve", "learned reward", "tab:purple"),
        ("gold_curve", "gold reward", "goldenrod"),
    ):
        gained = np.array(
            [
                np.interp(grid, kl, values - values[0])
                for kl, values in zip(last["kl_curve"], last[name], strict=True)
            ]
        )
        mean, error = gained.mean(axis=0), 1.96 * gained.std(axis=0) / np.sqrt(len(gained))
        axis.plot(grid, mean, color=color, label=text)
        axis.fill_between(grid, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
    axis.legend(frameon=False)
