"""The user's cache: downloaded files, and arrays that are computed once for all runs."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from shatter.cli.common import processes
from shatter.cli.common.binary import UsageError
from shatter.cli.common.run_folder import load_arrays, save_arrays
from shatter.data.atomic import remove_unfinished

CACHE_DIR_VARIABLE = "XDG_CACHE_HOME"
A_DAY = 86400.0  # seconds, after which the process that left a file half written is surely gone


def cache_dir() -> Path:
    """Returns the folder of the cache: `$XDG_CACHE_HOME/shatter` or `~/.cache/shatter`."""
    base = os.environ.get(CACHE_DIR_VARIABLE)
    try:
        return (Path(base) if base else Path.home() / ".cache") / "shatter"
    except RuntimeError:  # the user has no home
        return temporary_folder()


@functools.cache
def temporary_folder() -> Path:
    """Returns a folder that is removed when the process ends, always the same."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cached_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads arrays from the cache, or makes them and keeps them there.

    If the cache cannot be read or written, a warning names the variable that moves it, and the
    arrays are made: a broken cache costs time, not the run. Of several processes only the first one
    has a cache, and tells the others what is in it.

    Args:
      name: the file's path within the cache, ending in .npz. It must contain a hash of everything
        that the arrays depend on.
      make: makes the arrays.

    Returns:
      The arrays by name.
    """
    file = cache_dir() / name
    found = processes.first(lambda: _read(file))
    if found is not None:
        return found
    arrays = make()
    if processes.is_first():
        _keep(file, arrays)
    return arrays


def _read(file: Path) -> dict[str, np.ndarray] | None:
    try:
        return load_arrays(file) if file.exists() else None
    except (OSError, UsageError) as error:
        logging.warning("%s. It is computed again.", _reason(file, error))
        return None


def _keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        save_arrays(file, arrays)
        remove_unfinished(file.parent, age=A_DAY)
    except OSError as error:
        logging.warning(
            "%s. The run goes on without its cache; to have one, set %s to a folder that can be "
            "written to.",
            _reason(file, error),
            CACHE_DIR_VARIABLE,
        )


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be kept: {error.strerror}"
    return str(error)
