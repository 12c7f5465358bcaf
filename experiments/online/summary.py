"""Means over seeds with intervals, paired differences of arms, comparisons to a level."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.common.costs import cost
from experiments.common.curves import budgets_to_end, labels_to_end, summarise_fit
from experiments.common.intervals import mean_interval
from experiments.online.arms import ARMS
from experiments.online.config import Settled
from shatter import exploration
from shatter.evaluation import queries_to_level

Results = dict[str, dict[str, np.ndarray]]
"""Metrics `[S, 1 + R]` by arm."""

REFERENCE = "offline"
"""The arm to whose end labels are counted."""


def summarise(
    config: Settled,
    arm: str,
    results: Results,
    queries: np.ndarray,
) -> dict[str, Any]:
    """Returns one row of the table.

    Args:
      config: the run's.
      arm: its name.
      results: of all arms, on the same seeds.
      queries: `[1 + R]`, comparisons asked.

    Returns:
      A JSON-ready row: every measure at the end, at the start, and on average over rounds; of both
      the end and that average the paired differences from every other arm, "less" and "mean_less";
      comparisons to half of the base's KL(q || p0), seed by seed; of both win rates the fitted
      "curve" and, where offline was run, the "labels" to where it ends and the budgets that it
      would need to where this arm ends, "extrapolated"; the "cost". A level that is not reached is
      right-censored: its number is the budget, a lower bound.
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
        "setting": config.setting,
        "arm": arm,
        "num_seeds": len(metrics["kl"]),
        "budget": int(queries[-1]),
        **{name: mean_interval(end(values)) for name, values in metrics.items()},
        "mean": {name: mean_interval(average(values)) for name, values in metrics.items()},
        "start": {name: mean_interval(values[:, 0]) for name, values in metrics.items()},
        "less": less(end),
        "mean_less": less(average),
        "half": {"median": median, "never": never, "text": f"{bound}{median:.0f} ({never:.0%})"},
        **_win_curves(metrics, results.get(REFERENCE), queries),
        "cost": arm_cost(config, arm),
    }


def arm_cost(config: Settled, arm: str) -> dict[str, int]:
    """Returns what an arm holds and does in a run of one seed, as `costs.cost`.

    A policy that is retrained takes as many steps as online has taken by then; where nobody asks
    it in between, only the last training counts.
    """
    how, is_chat = ARMS[arm], config.setting == "chat"
    pools = len(config.prompts) if is_chat else config.queries_per_round
    steps = config.num_rounds * config.policy_steps
    if how.retrained and how.candidates == "learner":
        steps = steps * (config.num_rounds // config.period + 1) // 2
    return cost(
        how.kind,
        members=config.num_members,
        particles=0 if how.explore is exploration.uniform else config.num_particles,
        answer_steps=config.num_rounds * config.num_steps,
        policy_steps=steps,
        candidates=config.num_rounds * pools * config.num_candidates,
        step_samples=2 * config.policy_batch * len(config.prompts),
    )


def _win_curves(
    metrics: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None, queries: np.ndarray
) -> dict[str, Any]:
    """Returns what the curves of win rates say; nothing where one round makes no curve."""
    if len(queries) < 3:
        return {}
    names = ("win_greedy", "win_rate")
    found = {"curve": {name: summarise_fit(metrics[name], queries) for name in names}}
    if reference is None:
        return found
    for part, read in (("labels", labels_to_end), ("extrapolated", budgets_to_end)):
        found[part] = {name: read(metrics[name], reference[name], queries) for name in names}
    return found
