"""What a run says: rewards at every budget, differences from the best of n, the trained policy."""

from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.search.config import BEST_OF, Settled

Results = dict[str, dict[str, np.ndarray]]
"""By arm: metrics `[S, R]` by budget, or by training step for a policy."""

BASELINE = "best_of_n"


def summarise(
    config: Settled, results: Results, budgets: dict[str, list[int]], facts: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns one row for every arm and budget.

    Args:
      config: the config.
      results: the metrics.
      budgets: by arm.
      facts: `[S]` by name: what the seeds spent before any search, and how right the reward model
        is.

    Returns:
      JSON-ready rows with 95% bootstrap intervals over seeds. "less_best_of_n" is the paired
      difference of the gold reward at the same budget. Of a policy, "budget" is the laws of one
      response, "training_tokens" what was sampled before, and "gold_at_twist_tokens" its gold
      reward when it had sampled as much as the twist. The first row is about the problems.
    """
    rows: list[dict[str, Any]] = [
        {"arm": "problem"} | {name: mean_interval(values) for name, values in facts.items()}
    ]
    for arm, metrics in results.items():
        if arm in BEST_OF:
            last = {name: mean_interval(values[:, -1]) for name, values in metrics.items()}
            last["training_tokens"] = last.pop("tokens")
            sampled, gold = metrics["tokens"], metrics["gold"]
            place = np.argmin(np.abs(sampled - facts["twist_tokens"][:, None]), axis=1)
            last["gold_at_twist_tokens"] = mean_interval(gold[np.arange(len(gold)), place])
            rows.append({"arm": arm, "budget": config.max_length, **last})
            continue
        for place, budget in enumerate(budgets[arm]):
            row = {name: mean_interval(values[:, place]) for name, values in metrics.items()}
            base = results[BASELINE]["gold"][:, budgets[BASELINE].index(budget)]
            row["less_best_of_n"] = mean_interval(metrics["gold"][:, place] - base)
            rows.append({"arm": arm, "budget": budget, **row})
    return rows


def summary_table(config: Settled, rows: list[dict[str, Any]], budgets: list[int]) -> Table:
    """Returns the gold reward of every arm at some budgets, with the learned one at the last.

    Args:
      config: the config.
      rows: of `summarise`.
      budgets: the budgets to show.
    """
    accuracy = rows[0]["accuracy"]
    learned_from = "votes" if config.reward_model else f"{config.num_comparisons} choices"
    gold = "score by a held-out judge" if config.reward_model else "gold reward"
    table = Table(
        title=f"{config.setting}: search with a reward learned from {learned_from}, right on "
        f"{accuracy['mean']:.2f} of pairs; twist: {config.twist}",
        caption=f"{gold} of the best response by the learned reward, means over "
        f"{config.num_seeds} seeds [95%]; rloo and ppo say one response of a trained policy",
    )
    table.add_column("arm")
    for budget in budgets:
        table.add_column(f"{budget} tokens")
    table.add_column("less best_of_n, at the last")
    table.add_column("learned reward, at the last")
    for arm in dict.fromkeys(row["arm"] for row in rows[1:]):
        found = {row["budget"]: row for row in rows[1:] if row["arm"] == arm}
        cells = [format_interval(found[b]["gold"]) if b in found else "" for b in budgets]
        last = found[max(found)]
        less = format_interval(last.get("less_best_of_n"))
        table.add_row(arm, *cells, less, format_interval(last["learned"]))
    return table
