"""Aliases of the numpy arrays that this experiment's data layer deals in."""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

UNKNOWN = -1  # no answer, in every array of codes
