"""The win-rate curve of labels, w(n) = 1 - (n / a)^(-b) / 2, fitted and read."""

from typing import NamedTuple

import numpy as np

LEAST_LOSS = 1e-4  # below which a share of losses has no useful logarithm


class Curve(NamedTuple):
    """The win rate after n labels is 1 - (n / a)^(-b) / 2: one half at n = a, rising for b > 0."""

    a: float
    b: float


def fit_curve(labels: np.ndarray, win_rates: np.ndarray) -> Curve:
    """Fits the curve by least squares of the logarithms, in which it is a line.

    Source: Asghari et al., Efficient Exploration at Scale, https://arxiv.org/abs/2603.17378, for
    the curve, as other texts report it; the way to fit it is ours.

    Args:
      labels: `[R]`, > 0.
      win_rates: `[R]`, the mean win rate after so many labels.

    Returns:
      The curve; NaN as `a` where the win rate does not depend on the number of labels.
    """
    losses = np.log(2.0 * np.maximum(1.0 - win_rates, LEAST_LOSS))
    logs = np.log(labels)
    centred = logs - logs.mean()
    b = -float(centred @ losses / (centred @ centred))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a = float(np.exp(logs.mean() + np.float64(losses.mean()) / b))
    return Curve(a if np.isfinite(a) else float("nan"), b)


def win_rate_at(curve: Curve, labels: np.ndarray) -> np.ndarray:
    """Returns the win rate of a curve after so many labels."""
    return 1.0 - 0.5 * (labels / curve.a) ** -curve.b


def labels_at(curve: Curve, win_rate: float) -> float:
    """Returns after how many labels a rising curve has a win rate; infinity if it does not rise."""
    if not curve.b > 0:
        return float("inf")
    with np.errstate(over="ignore"):
        power = np.float64(2.0 * max(1.0 - win_rate, LEAST_LOSS)) ** (-1.0 / curve.b)
    return float(curve.a * power)
