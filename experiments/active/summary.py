"""Summarises runs: labels needed to reach a level, ratios to random, quality before and after."""

from typing import Any

import numpy as np

from experiments.active.config import Setting
from experiments.common.intervals import mean_interval
from shatter.evaluation import bootstrap_interval, queries_to_level

PARTS = {"sixteenth": 1 / 16, "eighth": 1 / 8, "quarter": 1 / 4, "all": 1.0}
"""Parts of the budget at which the arms are compared. A level is the log-loss that random reaches
with a part, the least so far of its mean over seeds."""

Results = dict[tuple[Setting, str], dict[str, np.ndarray]]


def summarise(setting: Setting, arm: str, results: Results) -> dict[str, Any]:
    """Returns one row of the tables.

    Args:
      setting: of the ensemble that learned.
      arm: the arm.
      results: metrics `[S, 1 + R]` of every setting and arm, random among them.

    Returns:
      A JSON-ready row. Differences are the arm's log-loss on new items minus random's, paired by
      seed: at parts of the budget, and averaged over the labels of the run. calibration has the
      differences of the Brier score and of the calibration error at the end.
    """
    metrics, random = results[setting, arm], results[setting, "random"]
    queries = np.array(setting.queries())
    curves, baseline = metrics["new_log_loss"], random["new_log_loss"]
    gap = curves - baseline
    over_labels = np.trapezoid(gap, queries, axis=1) / queries[-1]
    scalars = {name: values for name, values in metrics.items() if values.ndim == 2}
    return {
        "ensemble": setting.kind,
        "arm": arm,
        "num_seeds": len(curves),
        "budget": int(queries[-1]),
        "before": {name: mean_interval(values[:, 0]) for name, values in scalars.items()},
        "after": {name: mean_interval(values[:, -1]) for name, values in scalars.items()},
        "at": {
            name: {
                "labels": int(queries[column_of(queries, share)]),
                "log_loss": mean_interval(curves[:, column_of(queries, share)]),
                "difference": mean_interval(gap[:, column_of(queries, share)]),
            }
            for name, share in PARTS.items()
        },
        "mean_difference": mean_interval(over_labels),
        "calibration": {
            name: mean_interval(metrics[f"new_{name}"][:, -1] - random[f"new_{name}"][:, -1])
            for name in ("brier", "calibration_error")
        },
        "levels": {name: level(curves, baseline, queries, share) for name, share in PARTS.items()},
    }


def column_of(queries: np.ndarray, share: float) -> int:
    """Returns the first column with at least a part of the budget."""
    return int(np.searchsorted(queries, share * queries[-1]))


def level(
    curves: np.ndarray, baseline: np.ndarray, queries: np.ndarray, share: float
) -> dict[str, Any]:
    """Returns the labels that an arm needs for what random reaches with a part of the budget.

    Labels are read off the mean curves, because seeds differ by their division more than arms do,
    and random's is made monotone by its least so far, so that no level is a chance rise of it. The
    ratio is random's labels over the arm's. The ratio's interval resamples seeds, and finds the
    level and the labels anew each time. An arm that does not reach the level within the budget is
    right-censored: its labels are the budget, a lower bound, and the ratio is an upper bound.

    Args:
      curves: `[S, 1 + R]`, the arm's log-loss.
      baseline: `[S, 1 + R]`, random's.
      queries: `[1 + R]`, the labels of each column.
      share: the part of the budget.

    Returns:
      A JSON-ready description.
    """
    column = column_of(queries, share)

    def by_means(seeds: np.ndarray) -> tuple[float, float, bool]:
        rows = np.asarray(seeds, int)
        mine = curves[rows].mean(axis=0)
        theirs = np.minimum.accumulate(baseline[rows].mean(axis=0))
        means = np.stack([mine, theirs])
        (asked, random), (censored, _) = queries_to_level(means, queries, theirs[column])
        return max(asked, 1.0), max(random, 1.0), bool(censored)

    seeds = np.arange(len(curves))
    asked, random, censored = by_means(seeds)

    def ratio(seeds: np.ndarray) -> float:
        mine, theirs, _ = by_means(seeds)
        return theirs / mine

    low, high = bootstrap_interval(ratio, seeds, rng=np.random.default_rng(0))
    value = float(baseline.mean(axis=0)[: column + 1].min())
    _, never = queries_to_level(curves, queries, value)
    bound = "<" if censored else ""
    return {
        "level": value,
        "random_labels": int(queries[column]),
        "labels": asked,
        "censored": censored,
        "seeds_censored": float(never.mean()),
        "ratio": random / asked,
        "ratio_low": low,
        "ratio_high": high,
        "text": f"{'>' if censored else ''}{asked:.0f} ({never.mean():.0%})",
        "ratio_text": f"{bound}{random / asked:.2f} [{low:.2f}, {high:.2f}]",
    }
