"""Parts of a run that are computed once and then read from their files."""

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
