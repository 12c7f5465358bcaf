"""The number of queries needed to reach a level, and bootstrap intervals, in NumPy."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt


def queries_to_level(
    curves: npt.ArrayLike, queries: npt.ArrayLike, levels: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first number of queries at which each curve is at or below its level.

    Args:
      curves: `[S, R]`, a measure of every seed after every round; smaller is better.
      queries: `[R]`, the number of queries asked up to each round, ascending.
      levels: `[S]` or a number, the level of every seed.

    Returns:
      float `[S]`, numbers of queries, and bool `[S]`, true where they are right-censored: the level
      was not reached, and the number is the budget, a lower bound.

    Raises:
      ValueError: if the shapes do not fit.
    """
    curves, queries = np.asarray(curves), np.asarray(queries, float)
    if curves.ndim != 2 or queries.shape != curves.shape[1:]:
        raise ValueError(
            f"expected curves [S, R] and queries [R], found {curves.shape} and {queries.shape}"
        )
    reached = curves <= np.broadcast_to(np.asarray(levels, float), curves.shape[:1])[:, None]
    censored = np.logical_not(reached.any(axis=1))
    return np.where(censored, queries[-1], queries[reached.argmax(axis=1)]), censored


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: npt.ArrayLike,
    confidence: float = 0.95,
    rng: np.random.Generator,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic of samples that are paired by seed.

    Args:
      statistic: `(*samples[S]) -> number`, for example a ratio of medians.
      *samples: `[S]` each; every draw takes the same seeds from all of them.
      confidence: coverage, between 0 and 1.
      rng: makes the draws.
      num_resamples: number of bootstrap draws.

    Returns:
      The lower and upper end; both are the statistic itself if all seeds agree.

    Raises:
      ValueError: if the samples are empty or differ in length.
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    sizes = {array.shape for array in arrays}
    if len(sizes) != 1 or arrays[0].ndim != 1 or not arrays[0].size:
        raise ValueError(f"expected samples [S] of one length >= 1, found shapes {sorted(sizes)}")
    draws = rng.integers(arrays[0].size, size=(num_resamples, arrays[0].size))
    values = [statistic(*(array[draw] for array in arrays)) for draw in draws]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
