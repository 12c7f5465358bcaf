"""Parts of a run that are computed once and then read from their files, and how long they took."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shatter.cli.common import binary, run_folder


def load_or_run(
    path: Path, run: Callable[[], dict[str, np.ndarray]], *, mend: str = ""
) -> dict[str, np.ndarray]:
    """Returns the arrays of a part of a run, which is computed if its file does not exist.

    Args:
      path: the .npz file, which is written if the arrays are finite.
      run: computes the arrays.
      mend: what the user can do if they are not.

    Raises:
      UsageError: if an array is not finite, or the file is damaged.
    """
    if path.exists():
        return run_folder.load_arrays(path)
    arrays = run()
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise binary.UsageError(
                f"{path.parent.name}, {path.stem}: {name} is not finite at some seeds{mend}"
            )
    run_folder.save_arrays(path, arrays)
    return arrays


def run_timed(
    folder: Path, run: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], float | None]:
    """Returns the arrays of a part of a run and the seconds that it took, compilation included.

    The seconds are kept in the part's folder; of a part that was killed and resumed they are not
    known.

    Args:
      folder: the part's, which `run` makes.
      run: computes the arrays, or reads what is there.

    Returns:
      The arrays; the seconds, or None.
    """
    path, is_fresh, began = folder / "seconds.json", not folder.exists(), time.perf_counter()
    arrays = run()
    if is_fresh:
        run_folder.write_json(path, {"seconds": time.perf_counter() - began})
    return arrays, float(json.loads(path.read_text())["seconds"]) if path.exists() else None
