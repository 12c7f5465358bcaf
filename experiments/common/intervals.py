"""Means over seeds, and savings of labels, with bootstrap intervals, as JSON and as text."""

import numpy as np

from shatter.evaluation import bootstrap_interval, queries_to_level

Interval = dict[str, float]
"""mean, low and high."""


def mean_interval(values: np.ndarray) -> Interval:
    """Returns the mean over seeds `[S]` with its 95% bootstrap interval."""
    low, high = bootstrap_interval(np.mean, values, rng=np.random.default_rng(0))
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def curve_saving(
    curves: np.ndarray, reference: np.ndarray, queries: np.ndarray, *, same: float = 0.0
) -> Interval:
    """Returns the budget over the labels with which the mean curve is where the reference's ends.

    It is 1 if that is never reached, and if the reference's mean does not end below the start of
    the curve: there is nothing to save.

    Args:
      curves: `[S, R]`, a measure of every seed after every round; smaller is better.
      reference: `[S, R]`, the same of what it is compared with, paired by seed.
      queries: `[R]`, the labels up to each round, ascending.
      same: values that are this near are the same.

    Returns:
      The saving with its 95% bootstrap interval over seeds.
    """

    def saving(seeds: np.ndarray) -> float:
        rows = seeds.astype(int)
        mean, level = curves[rows].mean(axis=0), reference[rows, -1].mean() + same
        if mean[0] <= level:
            return 1.0
        (asked,), _ = queries_to_level(mean[None], queries, level)
        return float(queries[-1] / max(asked, 1.0))

    seeds = np.arange(len(curves))
    low, high = bootstrap_interval(saving, seeds, rng=np.random.default_rng(0))
    return {"mean": saving(seeds), "low": low, "high": high}


def format_interval(value: Interval | None, *, interval: bool = True) -> str:
    """Returns `mean [low, high]` in three or four decimals; an empty text for None."""
    if value is None:
        return ""
    digits = 4 if abs(value["mean"]) < 0.1 else 3
    text = f"{value['mean']:.{digits}f}"
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if interval else text
