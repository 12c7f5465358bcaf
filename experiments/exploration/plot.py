"""The figures of the exploration experiment: law against labels, arrivals, robustness."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.exploration.arms import ARMS, CLAIM
from experiments.exploration.config import Config, Setting
from experiments.exploration.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    CLAIM: "tab:blue",
    "passive": "black",
    "boltzmann": "tab:orange",
    "infomax": "tab:green",
    "thompson": "tab:purple",
    "laplace": "tab:red",
}
NAMES = {
    "default": "length 4,\nprior matches",
    "prior_scale=2.0": "prior twice\ntoo wide",
    "num_segments=2": "two segments,\nno Luce law fits",
}
MOST_CURVES = 8


def draw(config: Config, results: Results, summary: list[dict], folder: Path) -> Path:
    """Draws the law against labels, who has arrived at a level, and every arm over the claim.

    Args:
      config: the config.
      results: metrics `[S, 1 + R]` of every setting and arm.
      summary: the rows of the table.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    first = next(setting for setting, _ in results)
    curves = {arm: metrics for (setting, arm), metrics in results.items() if setting == first}
    best = sorted(curves, key=lambda arm: curves[arm]["kl"][:, -1].mean())[:MOST_CURVES]
    shown = [arm for arm in curves if arm in best or arm in (CLAIM, "passive")]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), constrained_layout=True)
    queries = np.arange(first.config.num_rounds + 1) * first.config.queries_per_round
    _laws(axes[0], {arm: curves[arm] for arm in shown}, queries, first)
    _arrived(axes[1], [row for row in summary if row["setting"] == first.name], shown, queries)
    _robustness(axes[2], summary)
    path = folder / f"{config.figure}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _laws(
    axis: Any, curves: dict[str, dict[str, np.ndarray]], queries: np.ndarray, setting: Setting
) -> None:
    for arm, metrics in curves.items():
        kl = metrics["kl"]
        mean, error = kl.mean(axis=0), 1.96 * kl.std(axis=0, ddof=1) / len(kl) ** 0.5
        (line,) = axis.plot(queries, mean, label=arm, **_style(arm))
        axis.fill_between(queries, mean - error, mean + error, color=line.get_color(), alpha=0.15)
    axis.set(
        title=f"The law, {len(kl)} seeds ({setting.name})",
        xlabel="comparisons asked",
        ylabel="KL(population || prediction), nats, mean and 95%",
        yscale="log",
    )
    axis.legend(frameon=False, fontsize="small")


def _arrived(axis: Any, rows: list[dict], shown: list[str], queries: np.ndarray) -> None:
    for row in rows:
        if row["arm"] in shown:
            axis.step(queries, row["quarter"]["arrived"], where="post", **_style(row["arm"]))
    axis.set(
        title="Arrived at a quarter of the pretrained KL",
        xlabel="comparisons asked",
        ylabel="share of seeds",
        ylim=(0, 1),
    )


def _robustness(axis: Any, summary: list[dict]) -> None:
    """Draws each arm's final KL over the claim's, geometric mean over seeds, in every setting."""
    names = list(dict.fromkeys(row["setting"] for row in summary))
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in summary) and arm != CLAIM]
    by_arm = len(names) == 1
    for row in summary:
        if row["arm"] == CLAIM:
            continue
        place = arms.index(row["arm"]) if by_arm else names.index(row["setting"])
        offset = 0.0 if by_arm else 0.6 * (arms.index(row["arm"]) / max(len(arms) - 1, 1) - 0.5)
        ratio = row["times_claim"]
        axis.plot([ratio["low"], ratio["high"]], [place + offset] * 2, **_style(row["arm"]))
        axis.plot(ratio["mean"], place + offset, "o", color=_style(row["arm"])["color"])
    axis.axvline(1.0, color=COLOURS[CLAIM])
    labels = arms if by_arm else [NAMES.get(name, name) for name in names]
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set(
        title=f"Final KL over {CLAIM}'s, same seeds",
        xlabel="ratio (geometric mean, 95%); right of 1 is worse",
        xscale="log",
    )
    low, high = axis.get_xlim()
    ticks = [tick for tick in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 16, 32) if low < tick < high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def _style(arm: str) -> dict[str, Any]:
    others = plt.get_cmap("tab20")
    colour = COLOURS.get(arm, others(list(ARMS).index(arm) % 20))
    return {"color": colour, "linewidth": 2.4 if arm == CLAIM else 1.4}
