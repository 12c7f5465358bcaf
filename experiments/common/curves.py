"""The win-rate curve of labels, w(n) = 1 - (n / a)^(-b) / 2, fitted and read; labels to a level."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.common.intervals import Interval, curve_saving, mean_interval
from shatter.evaluation import bootstrap_interval, queries_to_level

SAME = 1e-4  # win rates that are this near are the same
LEAST_LOSS = 1e-4  # below which a share of losses has no useful logarithm


class Curve(NamedTuple):
    """The win rate after n labels is 1 - (n / a)^(-b) / 2: one half at n = a, rising for b > 0.

    Attributes:
      level: `b log a`: a curve that does not rise has this and no `a`.
      b: the power.
    """

    level: float
    b: float

    @property
    def a(self) -> float:
        """The labels at which the win rate is one half; not finite, or 0, if it does not rise."""
        with np.errstate(all="ignore"):
            return float(np.exp(np.float64(self.level) / self.b))


def fit_curve(labels: np.ndarray, win_rates: np.ndarray) -> Curve:
    """Fits the curve by least squares of the logarithms, in which it is a line.

    Source: Asghari et al., Efficient Exploration at Scale, https://arxiv.org/abs/2603.17378, for
    the curve, as other texts report it; the way to fit it is ours.

    Args:
      labels: `[R]`, > 0.
      win_rates: `[R]`, the mean win rate after so many labels.

    Returns:
      The curve.
    """
    losses = np.log(2.0 * np.maximum(1.0 - win_rates, LEAST_LOSS))
    logs = np.log(labels)
    centred = logs - logs.mean()
    b = -float(centred @ losses / (centred @ centred))
    return Curve(float(losses.mean() + b * logs.mean()), b)


def win_rate_at(curve: Curve, labels: np.ndarray | float) -> np.ndarray:
    """Returns the win rate of a curve after so many labels."""
    return 1.0 - 0.5 * np.exp(curve.level - curve.b * np.log(labels))


def labels_at(curve: Curve, win_rate: float) -> float:
    """Returns after how many labels a rising curve has a win rate; infinity if it does not rise."""
    if not curve.b > 0:
        return float("inf")
    with np.errstate(over="ignore"):
        loss = np.log(2.0 * max(1.0 - win_rate, LEAST_LOSS))
        return float(np.exp((curve.level - loss) / curve.b))


def summarise_fit(curves: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the fit to the mean curve, and, an extrapolation, its win rate at ten budgets.

    Args:
      curves: `[S, 1 + R]`, win rates.
      labels: `[1 + R]`, ascending from 0.

    Returns:
      "a", and "b" and "at_ten_budgets" with 95% bootstrap intervals over seeds.
    """
    fit = lambda seeds: fit_curve(labels[1:], curves[seeds.astype(int), 1:].mean(axis=0))
    later = lambda seeds: float(win_rate_at(fit(seeds), 10.0 * labels[-1]))
    return {
        "a": fit(np.arange(len(curves))).a,
        "b": _interval(lambda seeds: fit(seeds).b, len(curves)),
        "at_ten_budgets": _interval(later, len(curves)),
    }


def labels_to_end(curves: np.ndarray, others: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the labels to where others' win rates end.

    Args:
      curves: `[S, 1 + R]`, win rates.
      others: `[S, 1 + R]`, of what they are compared with, paired by seed.
      labels: `[1 + R]`.

    Returns:
      "mean" and "median", seed by seed: a seed that does not arrive counts with the budget, a lower
      bound; "never", the share of such seeds; "saving", the budget over the labels with which the
      mean curve is where the others' ends, or 1 if that is not above the start.
    """
    asked, censored = queries_to_level(-curves, labels, SAME - others[:, -1])
    return {
        "mean": mean_interval(asked),
        "median": float(np.median(asked)),
        "never": float(np.mean(censored)),
        "saving": curve_saving(-curves, -others, labels, same=SAME),
    }


def budgets_to_end(curves: np.ndarray, others: np.ndarray, labels: np.ndarray) -> Interval:
    """Returns how many times the budget others would need to where the mean win rate ends.

    By the fit of their curve, so that it is an extrapolation where it is above 1; a million stands
    for more. The arguments are those of `labels_to_end`.
    """

    def times(seeds: np.ndarray) -> float:
        rows = seeds.astype(int)
        curve = fit_curve(labels[1:], others[rows, 1:].mean(axis=0))
        return min(labels_at(curve, float(curves[rows, -1].mean())) / float(labels[-1]), 1e6)

    return _interval(times, len(curves))


def _interval(statistic: Callable[[np.ndarray], float], num_seeds: int) -> Interval:
    seeds = np.arange(num_seeds)
    low, high = bootstrap_interval(
        statistic, seeds, rng=np.random.default_rng(0), num_resamples=1000
    )
    return {"mean": float(statistic(seeds)), "low": low, "high": high}
