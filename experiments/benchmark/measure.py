"""Times of different ways, measured in turn, and their ratios."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark.ways import Way


class Group(NamedTuple):
    """Different ways to do the same work.

    Attributes:
      name: the name of the work.
      unit: the unit of the work, for example "token".
      ways: the ways; the others are compared with the first one.
    """

    name: str
    unit: str
    ways: list[Way]


def warm_up(ways: Iterable[Way]) -> tuple[list[Way], list[str]]:
    """Runs every way once.

    Returns:
      The ways that ran, and the names of those that ran out of the accelerator's memory.
    """
    fit, exhausted = [], []
    for way in ways:
        try:
            way.run()
            fit.append(way)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            exhausted.append(way.name)
    return fit, exhausted


def time_in_turn(
    ways: list[Way], repeats: int, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Times the ways in turn, A B C A B C ..., so that other load on the machine affects all alike.

    Args:
      ways: the ways, after a warm-up.
      repeats: R, number of times that each way is measured.
      progress: called with 1 after each measurement.

    Returns:
      Seconds `[R, ways]`.
    """
    seconds = np.zeros((repeats, len(ways)))
    for repeat in range(repeats):
        for column, way in enumerate(ways):
            began = time.perf_counter()
            way.run()
            seconds[repeat, column] = time.perf_counter() - began
            progress(1)
    return seconds


def summarise(group: Group, seconds: np.ndarray) -> list[dict[str, Any]]:
    """Returns a row for every way that can be written as JSON.

    Args:
      group: the ways.
      seconds: `[R, ways]`.

    Returns:
      Rows with the median seconds of a unit of work, and the median, smallest and largest ratio to
      the first way over the repeats. The ways of one repeat are timed one after the other.
    """
    a_unit = seconds / np.asarray([way.units for way in group.ways])
    ratios = a_unit / a_unit[:, :1]
    return [
        {
            "group": group.name,
            "way": way.name,
            "unit": group.unit,
            "units": way.units,
            "seconds_a_unit": float(np.median(a_unit[:, column])),
            "ratio": float(np.median(ratios[:, column])),
            "ratio_low": float(ratios[:, column].min()),
            "ratio_high": float(ratios[:, column].max()),
            "compile_seconds": way.compile_seconds,
            "peak_bytes": way.peak_bytes,
            "process_bytes": way.process_bytes,
        }
        for column, way in enumerate(group.ways)
    ]
