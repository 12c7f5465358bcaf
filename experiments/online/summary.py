"""Means over seeds with intervals, differences from passive learning, comparisons to a level."""

from typing import Any

import numpy as np

from experiments.common.intervals import mean_interval
from shatter.evaluation import queries_to_level

Results = dict[str, dict[str, np.ndarray]]
"""Metrics `[S, 1 + R]` by arm."""


def summarise(
    setting: str,
    arm: str,
    metrics: dict[str, np.ndarray],
    baseline: dict[str, np.ndarray],
    queries: np.ndarray,
) -> dict[str, Any]:
    """Returns one row of the table.

    Args:
      setting: its name.
      arm: its name.
      metrics: of the arm, `[S, 1 + R]` each.
      baseline: of passive learning, on the same seeds.
      queries: `[1 + R]`, comparisons asked.

    Returns:
      A JSON-ready row: every measure at the end, at the start, and the end's paired difference from
      passive learning; comparisons to half of the base's KL(q || p0), seed by seed. A level that is
      not reached is right-censored: its number is the budget, a lower bound.
    """
    asked, censored = queries_to_level(metrics["kl"], queries, metrics["base_kl"][:, 0] / 2)
    median, never = float(np.median(asked)), float(np.mean(censored))
    bound = ">" if never >= 0.5 else ""
    ends = {name: values[:, -1] for name, values in metrics.items()}
    return {
        "setting": setting,
        "arm": arm,
        "num_seeds": len(metrics["kl"]),
        "budget": int(queries[-1]),
        **{name: mean_interval(values) for name, values in ends.items()},
        "start": {name: mean_interval(values[:, 0]) for name, values in metrics.items()},
        "difference": {
            name: mean_interval(values - baseline[name][:, -1]) for name, values in ends.items()
        },
        "half": {"median": median, "never": never, "text": f"{bound}{median:.0f} ({never:.0%})"},
    }
