"""The figure: learned and gold reward against tokens, and one against the other."""

from pathlib import Path

import matplotlib
import numpy as np

from experiments.common.intervals import mean_interval
from experiments.search.config import BEST_OF_TRAINED, SEARCHES, TRAINED, Config
from experiments.search.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_NAMES = (*SEARCHES, TRAINED, BEST_OF_TRAINED)
_COLORS = {name: plt.get_cmap("tab10")(place) for place, name in enumerate(_NAMES)}


def draw(
    config: Config,
    results: Results,
    budgets: dict[str, list[int]],
    optima: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Draws the figure.

    Args:
      config: the config.
      results: metrics `[S, R]` by arm.
      budgets: by arm.
      optima: `[S, N]`, the rewards of the optima at KL coefficients.
      path: the PNG.
    """
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), constrained_layout=True)
    for axis, name in ((axes[0], "learned"), (axes[1], "gold")):
        for arm, metrics in results.items():
            color = _COLORS[arm]
            if arm == TRAINED:
                level = mean_interval(metrics[name][:, -1])
                spent = metrics["tokens"][:, -1].mean()
                label = f"rloo, one response after {spent / 1000:.0f}k training tokens"
                axis.axhline(level["mean"], color=color, linestyle="--", label=label)
                axis.axhspan(level["low"], level["high"], color=color, alpha=0.1, linewidth=0)
                continue
            points = [mean_interval(values) for values in metrics[name].T]
            middle, low, high = ([p[key] for p in points] for key in ("mean", "low", "high"))
            axis.plot(budgets[arm], middle, "o-", color=color, label=arm, markersize=3)
            if arm in ("best_of_n", "tree_gumbel"):  # more bands would hide each other
                axis.fill_between(budgets[arm], low, high, color=color, alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.budgets, [str(budget) for budget in config.budgets])
        axis.set_xlabel("budget: laws of a next token")
        axis.set_ylabel(f"{name} reward of the best response")
        axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    axes[0].legend(fontsize=7)
    for arm, metrics in results.items():
        if arm != TRAINED:
            means = [metrics[name].mean(axis=0) for name in ("learned", "gold")]
            axes[2].plot(*means, "o-", color=_COLORS[arm], markersize=3)
        else:
            means = [metrics[name].mean(axis=0) for name in ("learned", "gold")]
            axes[2].plot(*means, "--", color=_COLORS[arm])
    optimum = [optima[name].mean(axis=0) for name in ("learned", "gold")]
    axes[2].plot(*optimum, color="0.3", linewidth=1, label="the exact optima at every beta")
    reach = max(metrics["learned"].mean(axis=0).max() for metrics in results.values())
    axes[2].plot([0, reach], [0, reach], ":", color="0.6", label="a reward model that is right")
    axes[2].set_xlabel("learned reward")
    axes[2].set_ylabel("gold reward")
    axes[2].legend(fontsize=7)
    figure.suptitle(
        f"search with a reward learned from {config.num_comparisons} choices "
        f"({config.num_seeds} seeds; bands are 95% intervals of best_of_n, tree_gumbel and rloo)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
