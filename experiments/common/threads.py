"""Small programs side by side on the cores of a CPU."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_SMALL_BYTES = 2**26
_MOST = 4


def allow() -> None:
    """Lets programs run in the thread that calls them. Call it before jax meets its devices.

    By default jax runs the programs of a CPU in one thread of its own, one after the other.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def num_at_once(state: Any) -> int:
    """Returns how many programs to run at once, by the arrays that one of them reads.

    The operations of small models are too small to keep all cores busy, so that there is one
    program for each core of a CPU, at most four. Large ones share the cores by themselves, and
    their memory should not be needed twice.

    Args:
      state: a pytree of arrays and of numbers.
    """
    leaves = jax.tree.leaves(state)
    num_bytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray))
    if jax.default_backend() != "cpu" or num_bytes > _SMALL_BYTES:
        return 1
    return min(os.cpu_count() or 1, _MOST)


def in_threads(
    run: Callable[[Item], Result], items: Sequence[Item], at_once: int
) -> Iterator[Result]:
    """Yields what a function returns of every item, in order, while it works on the next ones.

    Args:
      run: the function; its programs are compiled already, lest every thread compile them.
      items: the items.
      at_once: how many threads; those that have not begun when the caller stops never do.
    """
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(run, items)
