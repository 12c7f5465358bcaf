"""The figure: learned and gold reward against tokens, and one against the other."""

from pathlib import Path

import matplotlib
import numpy as np

from experiments.common.intervals import mean_interval
from experiments.search.config import BEST_OF, SEARCHES, Settled
from experiments.search.summary import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_NAMES = (*SEARCHES, *BEST_OF, *BEST_OF.values())
_COLORS = {name: plt.get_cmap("tab20")(2 * (p % 10) + p // 10) for p, name in enumerate(_NAMES)}
_BANDS = ("best_of_n", "beam_by_value", "tree_gumbel")
"""The searches whose intervals are drawn; more bands would hide each other."""


def draw(
    config: Settled,
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
      optima: `[S, N]`, the rewards of the optima at KL coefficients; empty = not known.
      path: the PNG.
    """
    gold = "score by a held-out judge" if config.reward_model else "gold reward"
    names = {"learned": "learned reward", "gold": gold}
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), constrained_layout=True)
    for axis, name in ((axes[0], "learned"), (axes[1], "gold")):
        for arm, metrics in results.items():
            color = _COLORS[arm]
            if arm in BEST_OF:
                level = mean_interval(metrics[name][:, -1])
                spent = metrics["tokens"][:, -1].mean()
                label = f"{arm}, one response after {spent / 1000:.0f}k training tokens"
                axis.axhline(level["mean"], color=color, linestyle="--", label=label)
                axis.axhspan(level["low"], level["high"], color=color, alpha=0.1, linewidth=0)
                continue
            points = [mean_interval(values) for values in metrics[name].T]
            middle, low, high = ([p[key] for p in points] for key in ("mean", "low", "high"))
            axis.plot(budgets[arm], middle, "o-", color=color, label=arm, markersize=3)
            if arm in _BANDS:
                axis.fill_between(budgets[arm], low, high, color=color, alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.budgets, [str(budget) for budget in config.budgets])
        axis.set_xlabel("budget: laws of a next token")
        axis.set_ylabel(f"{names[name]} of the best response")
        axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    axes[0].legend(fontsize=7)
    for arm, metrics in results.items():
        means = [metrics[name].mean(axis=0) for name in ("learned", "gold")]
        if arm not in BEST_OF:
            axes[2].plot(*means, "o-", color=_COLORS[arm], markersize=3)
        elif config.setting == "exact":
            axes[2].plot(*means, "--", color=_COLORS[arm])
        else:  # means over the few samples of a step would be a scribble
            axes[2].plot(*(mean[-1] for mean in means), "*", color=_COLORS[arm], markersize=10)
    if optima:
        optimum = [optima[name].mean(axis=0) for name in ("learned", "gold")]
        axes[2].plot(*optimum, color="0.3", linewidth=1, label="the exact optima at every beta")
    reach = max(metrics["learned"].mean(axis=0).max() for metrics in results.values())
    axes[2].plot([0, reach], [0, reach], ":", color="0.6", label="a reward model that is right")
    axes[2].set_xlabel(names["learned"])
    axes[2].set_ylabel(names["gold"])
    axes[2].legend(fontsize=7)
    learned_from = "people's votes" if config.reward_model else f"{config.num_comparisons} choices"
    about = f"{config.model_name_or_path}: " if config.setting == "pretrained" else ""
    banded = [arm for arm in (*_BANDS, *BEST_OF) if arm in results]
    figure.suptitle(
        f"{about}search with a reward learned from {learned_from} ({config.num_seeds} seeds; bands "
        f"are 95% intervals of {', '.join(banded)})"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
