"""Aliases of the NumPy arrays in which this experiment's data is read and prepared."""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

UNKNOWN = -1  # the code of a missing answer, in every array of codes
