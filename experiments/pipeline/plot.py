"""The figure: win rates and laws against labels, and where everyone ends."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.pipeline.algorithms import ALGORITHMS
from experiments.pipeline.config import Config, Setting
from experiments.pipeline.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "offline": "black",
    "periodic": "tab:gray",
    "online": "tab:orange",
    "information_directed": "tab:red",
    "ilhf_offline": "navy",
    "ilhf_passive": "tab:cyan",
    "ilhf_infomax": "tab:green",
    "ilhf_v_optimal": "tab:blue",
    "dpo_offline": "tab:brown",
    "dpo_online": "tab:purple",
}


def draw(config: Config, results: Results, labels: np.ndarray, folder: Path) -> Path:
    """Draws win rate and KL against labels, and both at the end.

    Args:
      config: the config.
      results: metrics `[S, 1 + R]` of every setting and algorithm.
      labels: `[1 + R]`.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15.5, 4.8), constrained_layout=True)
    _against_labels(axes[0], results, labels, "win_greedy")
    axes[0].set(
        title="Greedy decoding against the start's",
        ylabel="win rate by the rater; bands: 95% below the best possible",
        ylim=(0.5, 0.9),
    )
    _against_labels(axes[1], results, labels, "kl")
    axes[1].set(title="The population", ylabel="KL(population || who speaks), nats", yscale="log")
    for axis in axes[:2]:
        axis.set(xlabel="comparisons asked", xscale="log", xlim=(labels[1], labels[-1]))
    _ends(axes[2], results)
    path = folder / f"{config.figure}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _against_labels(axis: Any, results: Results, labels: np.ndarray, measure: str) -> None:
    for key, metrics in results.items():
        # Seeds differ in how good any answer can be, which is the same for all algorithms.
        ceiling = metrics["win_ceiling"] if measure == "win_greedy" else 0.0
        mean, error = _mean(metrics[measure])[0], _mean(metrics[measure] - ceiling)[1]
        (line,) = axis.plot(labels, mean, **_style(key, results))
        axis.fill_between(labels, mean - error, mean + error, color=line.get_color(), alpha=0.1)


def _ends(axis: Any, results: Results) -> None:
    """Draws everyone at the end, and the read-outs of their rewards as hollow marks."""
    for key, metrics in results.items():
        style = {**_style(key, results), "linestyle": "none"}
        for marks, fill in (
            (("kl", "win_rate"), "full"),
            (("readout_kl", "readout_win_rate"), "none"),
        ):
            (x, dx), (y, dy) = (
                tuple(float(value[-1]) for value in _mean(metrics[mark])) for mark in marks
            )
            label = style["label"] if fill == "full" else None
            shown = {**style, "label": label, "fillstyle": fill, "marker": "o"}
            axis.errorbar(x, y, xerr=dx, yerr=dy, elinewidth=0.6, **shown)
    axis.set(
        title="At the end; hollow: $p_0\\,e^{r/\\beta}/Z$ of the reward",
        xlabel="KL(population || who speaks), nats",
        ylabel="win rate of samples over the start's samples",
        xscale="log",
    )
    axis.legend(frameon=False, fontsize="x-small", loc="lower right")


def _mean(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over seeds and the half-width of its 95% interval, `[1 + R]` each."""
    return curves.mean(axis=0), 1.96 * curves.std(axis=0, ddof=1) / len(curves) ** 0.5


def _style(key: tuple[Setting, str], results: Results) -> dict[str, Any]:
    """Returns colours by algorithm, or by setting where there are several."""
    setting, name = key
    names = list(dict.fromkeys(s.name for s, _ in results))
    if len(names) == 1:
        return {"color": COLOURS[name], "label": name, "linewidth": 1.5}
    colour = plt.get_cmap("viridis")(0.9 * names.index(setting.name) / (len(names) - 1))
    algorithms = [other for other in ALGORITHMS if any(other == a for _, a in results)]
    dashes = ("-", "--", ":", "-.")[algorithms.index(name) % 4]
    return {"color": colour, "label": f"{name}, {setting.name}", "linestyle": dashes}
