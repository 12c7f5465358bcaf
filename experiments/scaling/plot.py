"""The figure: shares against parameters, their slopes, and the gold reward against the KL."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.common.intervals import mean_interval
from experiments.scaling.config import Config
from experiments.scaling.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(config: Config, results: Results, summary: dict[str, Any], path: Path) -> None:
    """Draws the figure.

    Args:
      config: the config.
      results: the measures of every round.
      summary: of `summarise`.
      path: the file.
    """
    figure, (shares, slopes, gold) = plt.subplots(1, 3, figsize=(16, 4.8), constrained_layout=True)
    arms = summary["arms"]
    colors = dict(zip(arms, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    _draw_shares(config, summary, colors, shares)
    _draw_slopes(summary, colors, slopes)
    _draw_frontier(results, summary, colors, gold)
    figure.suptitle(
        f"gold: {config.gold}; {config.num_seeds} seeds, 95%; equal data, {config.num_updates} "
        f"updates of {config.batch_size} documents"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_shares(config: Config, summary: dict[str, Any], colors: dict, axis: Any) -> None:
    """Draws the curves of the family as lines and other models as single points."""
    models = summary["models"]
    family = [name for name in models if "loss" in models[name]]
    for number, (arm, color) in enumerate(colors.items()):
        groups = [family, *([name] for name in models if name not in family)]
        for first, names in enumerate(filter(None, groups)):
            values = [models[name][arm]["share"] for name in names]
            middle, low, high = (np.array([v[k] for v in values]) for k in ("mean", "low", "high"))
            # Arms stand a little apart, so that intervals do not hide each other.
            place = np.array([models[name]["parameters"] for name in names]) * 1.02**number
            axis.errorbar(
                place,
                middle,
                yerr=(middle - low, high - middle),
                color=color,
                label=None if first else arm,
                marker="o" if names is family else "s",
                markersize=4,
                linewidth=1.3,
                capsize=2,
            )
    for name in models:
        if name not in family:
            axis.axvline(models[name]["parameters"], color="0.85", zorder=0)
            axis.annotate(name, (models[name]["parameters"], 0.02), rotation=90, fontsize=7,
                          xycoords=("data", "axes fraction"), color="0.4")  # fmt: skip
    axis.axhline(0.5, color="0.6", linestyle=":")
    axis.set_xscale("log")
    axis.set_xlabel("parameters")
    axis.set_ylabel(f"share preferred over a response of {config.reference}")
    axis.legend(fontsize=8)


def _draw_slopes(summary: dict[str, Any], colors: dict, axis: Any) -> None:
    """Draws the slope of every arm's curve with its interval."""
    for place, (arm, color) in enumerate(colors.items()):
        slope = summary.get("slopes", {}).get(arm, {}).get("log_odds")
        if slope is not None:
            width = [[slope["mean"] - slope["low"]], [slope["high"] - slope["mean"]]]
            axis.errorbar(slope["mean"], place, xerr=width, color=color, marker="o", capsize=3)
    axis.axvline(0.0, color="0.6", linestyle=":")
    axis.set_yticks(range(len(colors)), list(colors))
    axis.invert_yaxis()
    axis.set_xlabel("slope of the share's log-odds, per factor of ten in parameters")


def _draw_frontier(results: Results, summary: dict[str, Any], colors: dict, axis: Any) -> None:
    """Draws the gold reward against the KL by round, of the family's smallest and largest."""
    models = summary["models"]
    family = [name for name in models if "loss" in models[name]] or list(models)
    for name, style in dict(zip((family[-1], family[0]), ("-", ":"), strict=True)).items():
        for arm, color in colors.items():
            measures = results[name][arm]
            kl, gold = (
                [mean_interval(column)["mean"] for column in measures[measure].T]
                for measure in ("kl", "gold")
            )
            axis.plot(kl, gold, style, color=color, marker="o", markersize=3.5, linewidth=1.2)
        axis.plot([], [], style, color="0.3", label=name)
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xlabel("KL(policy || base), nats a response")
    axis.set_ylabel("gold reward, nats")
    axis.legend(fontsize=8)
