"""Means over seeds with bootstrap intervals, as JSON and as text."""

import numpy as np

from shatter.evaluation import bootstrap_interval

Interval = dict[str, float]
"""mean, low and high."""


def mean_interval(values: np.ndarray) -> Interval:
    """Returns the mean over seeds `[S]` with its 95% bootstrap interval."""
    low, high = bootstrap_interval(np.mean, values, rng=np.random.default_rng(0))
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def format_interval(value: Interval | None, *, interval: bool = True) -> str:
    """Returns `mean [low, high]` in three or four decimals; an empty text for None."""
    if value is None:
        return ""
    digits = 4 if abs(value["mean"]) < 0.1 else 3
    text = f"{value['mean']:.{digits}f}"
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if interval else text
