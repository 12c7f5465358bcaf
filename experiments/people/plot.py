"""Draws the figure of the experiment on people."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.people.config import Config

COLORS = {"head": "tab:red", "group_prompt": "tab:purple", "group_difference": "tab:blue"}


def draw(config: Config, summary: dict[str, Any], bins: dict[str, list[Any]], path: Path) -> None:
    """Draws KLs by method, the calibration of shares, and persons' log-loss by known answers.

    Args:
      config: the config.
      summary: intervals by "method/measure".
      bins: those of every seed, by method.
      path: the PNG file.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), constrained_layout=True)
    _bars(axes[0], summary)
    _calibration(axes[1], bins)
    _persons(axes[2], config, summary)
    figure.suptitle(f"{config.dataset}: new questions, {config.num_seeds} divisions, 95% intervals")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axis: Any, summary: dict[str, Any]) -> None:
    methods = [name.split("/")[0] for name in summary if name.endswith("/kl")]
    methods = [method for method in methods if method not in ("floor", "dpo")]
    for offset, (measure, color) in enumerate((("kl", "0.35"), ("group_kl", "tab:orange"))):
        found = [
            (n, summary[f"{m}/{measure}"])
            for n, m in enumerate(methods)
            if f"{m}/{measure}" in summary
        ]
        if not found:
            continue
        places = np.array([n for n, _ in found]) + 0.4 * offset
        means = np.array([value["mean"] for _, value in found])
        ends = np.array(
            [[value["mean"] - value["low"], value["high"] - value["mean"]] for _, value in found]
        )
        label = "everybody" if measure == "kl" else "each group"
        axis.barh(places, means, 0.38, xerr=np.abs(ends.T), color=color, label=label)
        floor = summary.get(f"floor/{measure}")
        if floor:
            axis.axvline(floor["mean"], color=color, linestyle=":", label=f"floor, {label}")
    axis.set_yticks(np.arange(len(methods)) + 0.2, methods)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("KL(people's shares || model), nats (dpo: see the table)")
    axis.legend(fontsize=8)


def _calibration(axis: Any, bins: dict[str, list[Any]]) -> None:
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for method in ("prompted_scaled", "ngrams", "head", "majority"):
        total = {
            key: np.sum([seed[key] for seed in bins[method]], axis=0) for key in bins[method][0]
        }
        some = total["number"] > 0
        number = total["number"][some]
        axis.plot(
            total["predicted"][some] / number,
            total["observed"][some] / number,
            "o-",
            label=method,
            markersize=4,
        )
    axis.set_xlabel("predicted share of an option")
    axis.set_ylabel("share of the people")
    axis.legend(fontsize=8)


def _persons(axis: Any, config: Config, summary: dict[str, Any]) -> None:
    numbers = [n for n in config.numbers_of_answers if f"persons/log_loss_{n}" in summary]
    if not numbers:
        axis.set_axis_off()
        return
    found = [summary[f"persons/log_loss_{n}"] for n in numbers]
    means = np.array([value["mean"] for value in found])
    ends = [[v["mean"] - v["low"] for v in found], [v["high"] - v["mean"] for v in found]]
    places = np.arange(len(numbers))
    axis.errorbar(
        places, means, np.abs(ends), fmt="o-", capsize=3, label="head, and the person's difference"
    )
    for name, label in (
        ("blind_log_loss_0", "head, without the group"),
        ("uniform_log_loss", "uniform"),
    ):
        if value := summary.get(f"persons/{name}"):
            axis.axhline(
                value["mean"],
                linestyle="--",
                color="0.5" if "uniform" in name else "tab:green",
                label=label,
            )
    axis.set_xticks(places, [str(n) for n in numbers])
    axis.set_xlabel("known answers of the person")
    axis.set_ylabel("log-loss of an answer to a new question, nats")
    axis.legend(fontsize=8)
