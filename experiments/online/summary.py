"""Means over seeds with intervals, paired differences of arms, comparisons to a level."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.common.intervals import mean_interval
from shatter.evaluation import queries_to_level

Results = dict[str, dict[str, np.ndarray]]
"""Metrics `[S, 1 + R]` by arm."""


def summarise(
    setting: str,
    arm: str,
    results: Results,
    queries: np.ndarray,
) -> dict[str, Any]:
    """Returns one row of the table.

    Args:
      setting: its name.
      arm: its name.
      results: of all arms, on the same seeds.
      queries: `[1 + R]`, comparisons asked.

    Returns:
      A JSON-ready row: every measure at the end, at the start, and on average over rounds; of both
      the end and that average the paired differences from every other arm, "less" and "mean_less";
      comparisons to half of the base's KL(q || p0), seed by seed. A level that is
      not reached is right-censored: its number is the budget, a lower bound.
    """
    metrics = results[arm]
    asked, censored = queries_to_level(metrics["kl"], queries, metrics["base_kl"][:, 0] / 2)
    median, never = float(np.median(asked)), float(np.mean(censored))
    bound = ">" if never >= 0.5 else ""
    end = lambda values: values[:, -1]
    average = lambda values: np.mean(values[:, 1:], axis=1)

    def less(part: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, Any]]:
        return {
            other: {
                name: mean_interval(part(values) - part(theirs[name]))
                for name, values in metrics.items()
                if name in theirs
            }
            for other, theirs in results.items()
            if other != arm
        }

    return {
        "setting": setting,
        "arm": arm,
        "num_seeds": len(metrics["kl"]),
        "budget": int(queries[-1]),
        **{name: mean_interval(end(values)) for name, values in metrics.items()},
        "mean": {name: mean_interval(average(values)) for name, values in metrics.items()},
        "start": {name: mean_interval(values[:, 0]) for name, values in metrics.items()},
        "less": less(end),
        "mean_less": less(average),
        "half": {"median": median, "never": never, "text": f"{bound}{median:.0f} ({never:.0%})"},
    }
