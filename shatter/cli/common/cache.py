"""What was computed once and may be computed again: kept in the user's cache for the next run."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from shatter.cli.common.binary import UsageError
from shatter.cli.common.run_folder import load_arrays, remove_temporaries, save_arrays

CACHE_DIR_VARIABLE = "XDG_CACHE_HOME"
A_DAY = 86400.0  # seconds; what has been half written for so long is of a process that was killed


def cache_dir() -> Path:
    """Where downloaded files are kept: `$XDG_CACHE_HOME/shatter` or `~/.cache/shatter`."""
    base = os.environ.get(CACHE_DIR_VARIABLE)
    try:
        return (Path(base) if base else Path.home() / ".cache") / "shatter"
    except RuntimeError:  # a user without a home
        return temporary_folder()


@functools.cache
def temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads arrays from the cache, or makes and keeps them.

    A cache that cannot be read or written costs time, not the run: that is said, with the variable
    that moves it, and the arrays are made.

    Args:
      name: the file's path within the cache, ending in .npz; a hash of all that decides the arrays.
      make: makes them.

    Returns:
      The arrays by name.
    """
    file = cache_dir() / name
    try:
        if file.exists():
            return load_arrays(file)
    except (OSError, UsageError) as error:
        logging.warning("%s. It is computed again.", _reason(file, error))
    arrays = make()
    try:
        save_arrays(file, arrays)
        remove_temporaries(file.parent, age=A_DAY)
    except OSError as error:
        logging.warning(
            "%s. The run goes on without its cache; set %s to a folder that can be written to "
            "have it.",
            _reason(file, error),
            CACHE_DIR_VARIABLE,
        )
    return arrays


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be kept: {error.strerror}"
    return str(error)
