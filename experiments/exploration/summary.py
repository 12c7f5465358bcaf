"""Queries to a KL level: medians, ratios to passive learning, intervals, censoring."""

from typing import Any

import numpy as np

from experiments.exploration.config import Setting
from experiments.exploration.process import baseline_of
from shatter.evaluation import bootstrap_interval, queries_to_level

LEVELS = ("half", "quarter", "absolute")
Results = dict[tuple[Setting, str], dict[str, np.ndarray]]


def summarise(setting: Setting, arm: str, results: Results, queries: np.ndarray) -> dict[str, Any]:
    """Returns one row of the table.

    The levels "half" and "quarter" are of the pretrained model's KL(q || p0), seed by seed, because
    the mixture of prior draws starts farther from q than p0 itself. A level that is not reached
    within the budget is right-censored: its number is the budget, a lower bound.

    Args:
      setting: the setting.
      arm: the arm.
      results: metrics `[S, 1 + R]` of every setting and arm.
      queries: `[1 + R]`.

    Returns:
      A JSON-ready row; the ratio is median queries of the arm over those of the passive arm with
      the same learner, paired by seed.
    """
    curves = results[setting, arm]["kl"]
    baseline = results[setting, baseline_of(arm)]["kl"]
    start = results[setting, arm]["pretrained_kl"][:, 0]
    low, high = bootstrap_interval(np.mean, curves[:, -1], rng=np.random.default_rng(0))
    row: dict[str, Any] = {
        "setting": setting.name,
        "arm": arm,
        "baseline": baseline_of(arm),
        "num_seeds": len(curves),
        "budget": int(queries[-1]),
        "kl": float(curves[:, -1].mean()),
        "kl_low": low,
        "kl_high": high,
    }
    levels: dict[str, np.ndarray | float] = {
        "half": start / 2,
        "quarter": start / 4,
        "absolute": setting.config.level,
    }
    for name in LEVELS:
        row[name] = _level(curves, baseline, queries, levels[name])
    return row


def _level(
    curves: np.ndarray, baseline: np.ndarray, queries: np.ndarray, levels: np.ndarray | float
) -> dict[str, Any]:
    asked, censored = queries_to_level(curves, queries, levels)
    passive, passive_censored = queries_to_level(baseline, queries, levels)
    median = float(np.median(asked))
    bound = ">" if np.mean(censored) >= 0.5 else ""
    low, high = bootstrap_interval(_ratio, asked, passive, rng=np.random.default_rng(0))
    # A censored median is a lower bound: the arm's bounds the ratio below, passive's above.
    passive_bound = np.mean(passive_censored) >= 0.5
    ratio_bound = {(False, False): "", (True, False): ">", (False, True): "<"}.get(
        (bool(bound), bool(passive_bound)), "?"
    )
    ratio = _ratio(asked, passive)
    return {
        "median_queries": median,
        "censored": float(np.mean(censored)),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_bound": ratio_bound,
        "text": f"{bound}{median:.0f} ({np.mean(censored):.0%})",
        "ratio_text": "both censored"
        if ratio_bound == "?"
        else f"{ratio_bound}{ratio:.2f} [{low:.2f}, {high:.2f}]",
    }


def _ratio(asked: np.ndarray, passive: np.ndarray) -> float:
    """Returns the ratio of the medians, with at least 1 query for the passive arm."""
    return float(np.median(asked) / max(np.median(passive), 1.0))
