"""The win-rate curve of labels, w(n) = 1 - (n / a)^(-b) / 2, fitted and read."""

from typing import NamedTuple

import numpy as np

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
