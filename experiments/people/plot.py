"""Draws the figure of the experiment on people."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.people.config import Config

SHOWN = (
    *("uniform", "prompted_scaled", "ngrams", "head"),
    *("majority", "group_difference", "group_prompt"),
)


def draw(config: Config, summary: dict[str, Any], bins: dict[str, list[Any]], path: Path) -> None:
    """Draws KLs by method, the calibration of shares, and persons' log-loss by known answers.

    Args:
      config: the config.
      summary: intervals by "method/measure".
      bins: those of every seed, by method.
      path: the PNG file.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), constrained_layout=True)
    _points(axes[0], summary)
    _calibration(axes[1], bins)
    _persons(axes[2], config, summary)
    figure.suptitle(f"{config.dataset}: new questions, {config.num_seeds} divisions, 95% intervals")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _points(axis: Any, summary: dict[str, Any]) -> None:
    """Draws the KLs of every method, and the floors as lines."""
    methods = [method for method in SHOWN if f"{method}/kl" in summary]
    measures = {"kl": ("0.35", "everybody"), "group_kl": ("tab:orange", "each group")}
    for offset, (measure, (color, label)) in enumerate(measures.items()):
        for number, method in enumerate(methods):
            if value := summary.get(f"{method}/{measure}"):
                ends = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
                place = number + 0.25 * offset
                style = {"xerr": np.abs(ends), "fmt": "o", "color": color, "capsize": 3}
                axis.errorbar(value["mean"], place, label=label if not number else None, **style)
        if floor := summary.get(f"floor/{measure}"):
            line = {"color": color, "linestyle": ":"}
            axis.axvline(floor["mean"], label=f"floor, {label}", **line)
    axis.set_yticks(np.arange(len(methods)) + 0.12, methods)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("KL(people's shares || model), nats")
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
    """Draws what a person's known answers are worth, division by division."""
    numbers = [n for n in config.numbers_of_answers if f"persons/gain_{n}" in summary]
    if not numbers:
        axis.set_axis_off()
        return
    found = [summary[f"persons/gain_{n}"] for n in numbers]
    means = [value["mean"] for value in found]
    ends = [[v["mean"] - v["low"] for v in found], [v["high"] - v["mean"] for v in found]]
    places = np.arange(len(numbers))
    axis.errorbar(
        places, means, np.abs(ends), fmt="o-", capsize=3, label="answers, beside the group"
    )
    if value := summary.get("persons/gain_group"):
        axis.axhline(value["mean"], linestyle="--", color="tab:orange", label="the group alone")
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.set_xticks(places, [str(n) for n in numbers])
    axis.set_xlabel("known answers of the person")
    axis.set_ylabel("log-loss saved on a new question, nats")
    axis.legend(fontsize=8)
