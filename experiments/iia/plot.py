"""The figure of the iia experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.iia.config import Config
from experiments.iia.exact import type_share
from experiments.iia.summary import BETAS, Case, Curves, Gaps, policies, shown_objective

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "ilhf": "tab:blue",
    "reward_model": "black",
    "dpo_choice": "tab:purple",
    "dpo": "tab:green",
    "ipo": "tab:orange",
    "slic": "tab:red",
}
LINES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {  # (answer, objective): (label, style)
    ("choice", "ilhf"): ("a choice", {"color": "tab:blue"}),
    ("ties", "ilhf"): ("ties, unresolved", {"color": "tab:brown", "linewidth": 3, "alpha": 0.5}),
    ("ranking", "ilhf"): ("ranking, Plackett-Luce", {"color": "black", "linestyle": "--"}),
    ("ranking", "dpo"): ("ranking, its pairs", {"color": "tab:green"}),
    ("davidson", "dpo"): ("pairs with ties, Davidson", {"color": "tab:purple"}),
}


def draw(
    config: Config,
    gaps: Gaps,
    curves: dict[tuple[Case, str], Curves],
    rows: list[dict],
    folder: Path,
) -> Path:
    """Draws gaps by size, learning, shares of the policies, clones, and other answers.

    Args:
      config: the config.
      gaps: exact ends.
      curves: trained runs.
      rows: the summary.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    figure, axes = plt.subplots(2, 3, figsize=(16.5, 9.6), constrained_layout=True)
    _gaps_by_size(axes[0, 0], config, rows)
    _learning(axes[0, 1], config, gaps, curves)
    _shares(axes[0, 2], config, gaps, rows, in_query=False)
    _shares(axes[1, 2], config, gaps, rows, in_query=True)
    _clones(axes[1, 0], config, rows)
    _answers(axes[1, 1], config, gaps)
    for axis in (axes[0, 0], axes[0, 2], *axes[1]):
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.sizes, [str(size) for size in config.sizes])
        axis.minorticks_off()
        axis.set_xlabel("messages in a query, K: one of type 1, K - 1 of type 2")
    path = folder / "iia.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _gaps_by_size(axis: Any, config: Config, rows: list[dict]) -> None:
    rows = [row for row in rows if row["correlation"] == 1.0 and "trained" in row]
    names = list(dict.fromkeys(row["objective"] for row in rows))
    for i, name in enumerate(names):
        own = sorted((row for row in rows if row["objective"] == name), key=lambda r: r["size"])
        sizes = np.array([row["size"] for row in own])
        axis.plot(sizes, [row["gap"] for row in own], color=COLORS[name], alpha=0.7)
        shift = 1.03 ** (i - (len(names) - 1) / 2)  # puts the points of one size side by side
        _points(axis, sizes * shift, own, "gap", COLORS[name], name)
    axis.axhline(0, color="0.6", linewidth=0.8)
    crossing = 1 + (1 - config.share) / config.share
    axis.axvline(
        crossing, color="0.6", linestyle=":", label=f"K - 1 = (1 - p) / p, p = {config.share:g}"
    )
    axis.set(title="implied reward gap: exact (lines), trained (points)", ylabel="r1 - r2")
    axis.legend(frameon=False, fontsize="small", ncols=2, loc="lower right")


def _learning(
    axis: Any, config: Config, gaps: Gaps, curves: dict[tuple[Case, str], Curves]
) -> None:
    largest = max(config.sizes)
    steps = np.arange(config.num_rounds + 1) * config.num_steps
    for (case, name), metrics in curves.items():
        if case.size != largest or case.correlation != 1.0:
            continue
        gap = metrics["gap"]
        mean, error = gap.mean(axis=0), 1.96 * gap.std(axis=0, ddof=1) / len(gap) ** 0.5
        axis.plot(steps, mean, color=COLORS[name], label=name)
        axis.fill_between(steps, mean - error, mean + error, color=COLORS[name], alpha=0.2)
        axis.axhline(gaps[case, name], color=COLORS[name], linestyle=":", linewidth=0.9)
    axis.set(
        title=f"learning at K = {largest} (dotted: exact end)",
        xlabel=f"steps of {config.num_queries} choices",
        ylabel="r1 - r2",
    )
    axis.legend(frameon=False, ncols=2)


def _shares(axis: Any, config: Config, gaps: Gaps, rows: list[dict], *, in_query: bool) -> None:
    for label, (beta, by_size) in policies(gaps, config).items():
        if label.startswith("IPO") and beta != config.beta:
            continue
        sizes = sorted(by_size)
        shares = [type_share(by_size[n], n - 1 if in_query else 1, beta) for n in sizes]
        axis.plot(sizes, shares, label=label, **_policy_style(label, beta, config))
    field = "share_in_query" if in_query else "share_of_policy"
    for name in ("ilhf", "reward_model", "ipo", "slic"):
        own = [r for r in rows if r["objective"] == name and r["correlation"] == 1.0]
        own = [row for row in own if "trained" in row]
        _points(axis, np.array([row["size"] for row in own]), own, field, COLORS[name], None)
    axis.axhline(
        config.share,
        color="0.4",
        linestyle=":",
        label=f"raters who want type 1, p = {config.share:g}",
    )
    among = "the K messages of a query" if in_query else "as many messages of either type"
    axis.set(
        title=f"type 1's share of the policy,\namong {among}", ylabel="share", ylim=(-0.03, 1.03)
    )
    if not in_query:
        axis.legend(frameon=False, fontsize="small")


def _clones(axis: Any, config: Config, rows: list[dict]) -> None:
    rows = [row for row in rows if "trained" in row]
    shown = shown_objective(config)
    correlations = sorted({row["correlation"] for row in rows})
    for correlation, color in zip(
        correlations, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(correlations))), strict=True
    ):
        own = [r for r in rows if r["objective"] == shown and r["correlation"] == correlation]
        own.sort(key=lambda row: row["size"])
        sizes = np.array([row["size"] for row in own])
        axis.plot(sizes, [row["gap"] for row in own], color=color)
        note = {0.0: " (Luce)", 1.0: " (dichotomy)"}.get(correlation, "")
        _points(axis, sizes, own, "gap", color, f"correlation {correlation:g}{note}")
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(title=f"correlated clones: gap of {shown}, exact and trained", ylabel="r1 - r2")
    axis.legend(frameon=False, loc="upper left")


def _answers(axis: Any, config: Config, gaps: Gaps) -> None:
    for (answer, name), (label, style) in LINES.items():
        for share in dict.fromkeys((config.share, 1 - config.share)):
            own = {
                case.size: gap
                for (case, objective), gap in gaps.items()
                if (case.answer, objective, case.share) == (answer, name, share)
                and case.correlation == 1.0
            }
            sizes = sorted(own)
            original = share == config.share
            axis.plot(
                sizes,
                [own[n] for n in sizes],
                marker="o" if original else "x",
                markersize=5,
                label=label if original else None,
                **style,
            )
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(
        title=f"other answers, exact: p = {config.share:g} (o) and {1 - config.share:g} (x)",
        ylabel="r1 - r2",
    )
    axis.legend(frameon=False, fontsize="small", loc="upper left")


def _points(
    axis: Any, x: np.ndarray, rows: list[dict], field: str, color: Any, label: str | None
) -> None:
    means = np.array([row["trained"][field]["mean"] for row in rows])
    ends = [[row["trained"][field][end] for row in rows] for end in ("low", "high")]
    errors = np.abs(np.array(ends) - means)
    axis.errorbar(x, means, errors, fmt="o", markersize=4, capsize=2, color=color, label=label)


def _policy_style(label: str, beta: float | None, config: Config) -> dict[str, Any]:
    if not label.startswith("RLHF"):
        return {"color": COLORS[label.split(",")[0].lower()]}
    others = dict(zip(BETAS, (":", "-.", "--"), strict=True))
    return {"color": "black", "linestyle": "-" if beta == config.beta else others[beta or 1.0]}
