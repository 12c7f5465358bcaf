"""What a run says: means and medians, paired differences, who has arrived at a level, the claim."""

from typing import Any

import numpy as np

from experiments.common.intervals import curve_saving
from experiments.exploration.arms import BASELINES, CLAIM
from experiments.exploration.config import Setting
from shatter.evaluation import bootstrap_interval, queries_to_level

LEVELS = ("half", "quarter", "absolute", "passive")
Results = dict[tuple[Setting, str], dict[str, np.ndarray]]
JOINT_RESAMPLES = 10_000  # intervals of many arms together reach far into the tails


def summarise(setting: Setting, arm: str, results: Results, queries: np.ndarray) -> dict[str, Any]:
    """Returns one row of the table.

    The levels "half" and "quarter" are of the pretrained model's KL(q || p0), "passive" is where
    the passive arm ends, all seed by seed; "absolute" is one number. A level that is not reached
    within the budget is right-censored: the number of labels is the budget, a lower bound. So means
    are restricted means, and their ratio to passive's is a bound where either is censored. "saving"
    is read off the mean curves: the budget over the labels with which the arm's mean KL is where
    passive's mean KL ends.

    Args:
      setting: the setting.
      arm: the arm.
      results: metrics `[S, 1 + R]` of every setting and arm.
      queries: `[1 + R]`.

    Returns:
      A JSON-ready row. Intervals are of 95%; those named "joint" hold for the differences of all
      arms from the claim together, by Bonferroni's correction.
    """
    metrics = results[setting, arm]
    end, claim = metrics["kl"][:, -1], results[setting, CLAIM]["kl"][:, -1]
    num_others = max(sum(s == setting for s, _ in results) - 1, 1)
    row: dict[str, Any] = {
        "setting": setting.name,
        "arm": arm,
        "num_seeds": len(end),
        "budget": int(queries[-1]),
        "kl": _interval(np.mean, end),
        "kl_median": _interval(np.median, end),
        "point_kl": _interval(np.mean, metrics["point_kl"][:, -1]),
        "own_regret": _interval(np.mean, metrics["own_regret"][:, -1]),
        "less_claim": _interval(_mean_difference, end, claim),
        "less_claim_joint": _interval(
            _mean_difference,
            end,
            claim,
            confidence=1 - 0.05 / num_others,
            num_resamples=JOINT_RESAMPLES,
        ),
        "times_claim": _interval(_geometric_ratio, end, claim),
    }
    for baseline in BASELINES:
        if (setting, baseline) in results:
            other = results[setting, baseline]["kl"][:, -1]
            row[f"less_{baseline}"] = _interval(_mean_difference, end, other)
    row["saving"] = curve_saving(metrics["kl"], results[setting, "passive"]["kl"], queries)
    for name, level in _levels(setting, results).items():
        row[name] = _arrivals(metrics["kl"], results[setting, "passive"]["kl"], queries, level)
    return row


def claim_holds(summary: list[dict]) -> dict[str, list[str]]:
    """Returns, setting by setting, the arms that are clearly better than the claim.

    Args:
      summary: the rows of `summarise`.

    Returns:
      The names of the arms whose interval of the paired difference to the claim lies below 0, not
      corrected for the number of arms.
    """
    better: dict[str, list[str]] = {row["setting"]: [] for row in summary}
    for row in summary:
        if row["less_claim"]["high"] < 0:
            better[row["setting"]].append(row["arm"])
    return better


def _levels(setting: Setting, results: Results) -> dict[str, np.ndarray | float]:
    passive = results[setting, "passive"]
    start = passive["pretrained_kl"][:, 0]
    return {
        "half": start / 2,
        "quarter": start / 4,
        "absolute": setting.config.level,
        "passive": passive["kl"][:, -1],
    }


def _arrivals(
    curves: np.ndarray, passive: np.ndarray, queries: np.ndarray, level: np.ndarray | float
) -> dict[str, Any]:
    """Returns labels to a level: median, restricted mean, who never arrives, the saving."""
    asked, censored = queries_to_level(curves, queries, level)
    others, others_censored = queries_to_level(passive, queries, level)
    return {
        "median": float(np.median(asked)),
        "mean": float(np.mean(asked)),
        "never": float(np.mean(censored)),
        "never_passive": float(np.mean(others_censored)),
        "saving": _interval(_saving, asked, others),
        "arrived": [float(np.mean(~censored & (asked <= count))) for count in queries],
    }


def _interval(statistic: Any, *samples: np.ndarray, **options: Any) -> dict[str, float]:
    low, high = bootstrap_interval(statistic, *samples, rng=np.random.default_rng(0), **options)
    return {"mean": float(statistic(*samples)), "low": low, "high": high}


def _mean_difference(these: np.ndarray, others: np.ndarray) -> float:
    return float(np.mean(these - others))


def _geometric_ratio(these: np.ndarray, others: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(these) - np.log(others))))


def _saving(these: np.ndarray, others: np.ndarray) -> float:
    """Returns the ratio of the other arm's mean number of labels to this one's."""
    return float(np.mean(others) / max(np.mean(these), 1.0))
