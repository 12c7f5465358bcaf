"""How predicted choices agree with votes on pairs, for arrays of NumPy and of JAX alike."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

BINS = 10  # of the calibration


class Agreement(NamedTuple):
    """Sums over the votes on P pairs from which log-loss, accuracy and calibration are means.

    Attributes:
      losses: `[P]`, -log P(the preferred one), summed over a pair's votes, nats; votes for neither
        do not count.
      has_majority: bool `[P]`, whether one of the two has more votes.
      is_right: `[P]`, 1 if the majority's choice has the larger probability, 1/2 if both are equal.
      predicted: `[BINS]`, P(first) summed over votes, by equal bins of P(first).
      observed: `[BINS]`, the votes for the first, likewise.
      count: `[BINS]`, the votes for either, likewise.
      calibration_gap: `[]`, the sum over bins of `|predicted - observed|`.
    """

    losses: Any
    has_majority: Any
    is_right: Any
    predicted: Any
    observed: Any
    count: Any
    calibration_gap: Any


def agreement(log_first: Any, log_second: Any, first: Any, second: Any) -> Agreement:
    """Compares predicted choices with votes.

    Args:
      log_first: `[P]`, log of the predicted probability of the first, nats.
      log_second: `[P]`, that of the second.
      first: `[P]`, votes for the first.
      second: `[P]`, votes for the second.

    Returns:
      The sums, arrays of the library that `log_first` is of.
    """
    xp = log_first.__array_namespace__()
    p, decided = xp.exp(log_first), first + second
    bins = xp.minimum((p * BINS).astype(int), BINS - 1)
    predicted, observed = _by_bin(bins, decided * p), _by_bin(bins, first)
    return Agreement(
        losses=-(first * log_first + second * log_second),
        has_majority=first != second,
        is_right=0.5 + 0.5 * xp.sign(log_first - log_second) * xp.sign(first - second),
        predicted=predicted,
        observed=observed,
        count=_by_bin(bins, decided),
        calibration_gap=xp.sum(xp.abs(predicted - observed)),
    )


def _by_bin(bins: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.bincount(bins, values, BINS)
    return jnp.zeros(BINS).at[bins].add(values)
