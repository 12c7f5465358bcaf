"""Draws the figures of the active experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.active.config import Config
from experiments.active.summary import Results
from shatter.cli.common.agreement import BINS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLE: dict[str, dict[str, Any]] = {
    "random": {"color": "black"},
    "passive": {"color": "0.6", "linestyle": ":"},
    "boltzmann": {"color": "tab:orange", "linestyle": "--"},
    "thompson": {"color": "tab:blue", "linestyle": "--"},
    "double_thompson": {"color": "tab:cyan", "linestyle": "--"},
    "infomax": {"color": "tab:green"},
    "variance": {"color": "tab:olive"},
    "joint_infomax": {"color": "tab:purple"},
    "quality_gap": {"color": "tab:pink", "linestyle": "--"},
    "information_directed": {"color": "tab:gray", "linestyle": "--"},
    "entropy": {"color": "tab:brown", "linestyle": ":"},
    "v_optimal": {"color": "tab:red", "linewidth": 2.2},
}
BANDS = ("random", "v_optimal")  # bands of all arms would hide each other


def draw(config: Config, results: Results, folder: Path) -> Path:
    """Draws the log-loss on new items against labels, a panel a kind of ensemble.

    Args:
      config: the config.
      results: metrics `[S, 1 + R]` of every setting and arm.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    kinds = list(dict.fromkeys(setting.kind for setting, _ in results))
    figure, axes = _panels(len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        for (setting, arm), metrics in results.items():
            if setting.kind != kind:
                continue
            curves, queries = metrics["new_log_loss"], np.array(setting.queries())
            mean = curves.mean(axis=0)
            (line,) = axis.plot(queries, mean, label=arm, **STYLE[arm])
            if arm in BANDS:
                # The band is of the difference to random, because seeds differ by their division.
                other = results[setting, "random"]["new_log_loss"] if arm != "random" else mean
                spread = (curves - other).std(axis=0, ddof=1)
                error = 1.96 * spread / len(curves) ** 0.5
                axis.fill_between(
                    queries, mean - error, mean + error, color=line.get_color(), alpha=0.12
                )
        axis.axhline(np.log(2), color="0.7", linewidth=0.8)
        axis.set(title=f"{config.dataset}, {kind}", xlabel="labels asked")
    axes[0].set_ylabel("log-loss on new items, nats a vote")
    return _save(figure, axes, folder / "active.png")


def draw_calibration(config: Config, results: Results, folder: Path) -> Path:
    """Draws observed against predicted shares on new items at the end, a panel a kind.

    Args:
      config: the config.
      results: metrics of every setting and arm.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    kinds = list(dict.fromkeys(setting.kind for setting, _ in results))
    figure, axes = _panels(len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        for (setting, arm), metrics in results.items():
            if setting.kind != kind:
                continue
            predicted, observed, count = (
                metrics[f"new_{name}"][:, -1].sum(axis=0)
                for name in ("predicted", "observed", "count")
            )
            enough = count >= count.sum() / (50 * BINS)
            axis.plot(
                predicted[enough] / count[enough],
                observed[enough] / count[enough],
                marker=".",
                label=arm,
                **STYLE[arm],
            )
        axis.set(title=f"{config.dataset}, {kind}", xlabel="predicted share for the first")
    axes[0].set_ylabel("observed share of votes, new items")
    return _save(figure, axes, folder / "calibration.png")


def _panels(number: int) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        1, number, figsize=(4.8 * number + 2.2, 4.2), constrained_layout=True, squeeze=False
    )
    return figure, axes[0]


def _save(figure: Any, axes: Any, path: Path) -> Path:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
