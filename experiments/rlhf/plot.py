"""The figure of the rlhf experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.rlhf.config import Config
from experiments.rlhf.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "ilhf": "tab:pink",
    "rlhf": "tab:purple",
    "rlhf_adaptive": "0.5",
    "rm_posterior": "black",
    "rm_posterior_few": "tab:red",
    "dpo": "tab:brown",
    "ipo": "tab:olive",
    "slic": "tab:orange",
}
STYLES = ("-", "--", ":", "-.")


def draw(config: Config, results: Results, steps: np.ndarray, folder: Path) -> Path:
    """Draws KL(q || pi) over training, win rate against log score, and over-optimisation.

    Args:
      config: the config.
      results: metrics `[S, 1 + R, ...]` by objective and arm.
      steps: `[1 + R]`, gradient steps.
      folder: the PNG is written to this folder.

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
    axes[1].set_title("win rate against log score, at the end")
    axes[1].set_xscale("symlog", linthresh=4)
    low, high = axes[1].get_xlim()
    ticks = [tick for tick in (-40, -20, -10, -5, -4, -3, -2, -1) if low <= tick <= high]
    axes[1].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[1].set_xlabel("log score E_q log pi: inclusion")
    axes[1].set_ylabel("win rate against the pretrained model")
    _over_optimisation(axes[2], results)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path = folder / "rlhf.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _over_optimisation(axis: Any, results: Results) -> None:
    """Draws gold and learned reward of the exact posterior of the learned reward as beta falls."""
    axis.set_title("over-optimisation of a learned reward, beta falling")
    axis.set_xlabel("KL(pi || p0), nats")
    axis.set_ylabel("reward gained")
    last = {
        objective: {k: v[:, -1] for k, v in metrics.items() if k.endswith("_curve")}
        for (objective, _), metrics in results.items()
        if "gold_curve" in metrics
    }
    for objective, curves in last.items():
        kl = curves["kl_curve"].mean(axis=0)
        for name, text, line in (("learned_curve", "learned", "--"), ("gold_curve", "gold", "-")):
            gained = curves[name] - curves[name][:, :1]
            mean = gained.mean(axis=0)
            error = 1.96 * gained.std(axis=0) / np.sqrt(len(gained))
            style = {"color": COLORS[objective], "linestyle": line}
            axis.plot(kl, mean, label=f"{text} reward, {objective}", **style)
            axis.fill_between(
                kl, mean - error, mean + error, color=COLORS[objective], alpha=0.12, linewidth=0
            )
    if last:
        axis.legend(frameon=False, fontsize="small")
