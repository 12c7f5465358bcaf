"""Opens files of weights, and checks and reads their tensors."""

import math
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from shatter.models.fields import shown
from shatter.models.gguf_header import read_header
from shatter.models.gguf_weights import Weights
from shatter.models.tokenizer import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Stored(NamedTuple):
    """A tensor in an open file, of which nothing has been read yet.

    Attributes:
      file: the path of the file.
      opened: the file as `open_weights` gives it.
      name: the name of the tensor in the file.
    """

    file: Path
    opened: Any
    name: str

    def shape(self) -> tuple[int, ...]:
        """Returns its shape, from the header of the file."""
        return tuple(self.opened.get_slice(self.name).get_shape())

    def dtype(self) -> Any:
        """Returns its type.

        Raises:
          ValueError: if it does not hold floats.
        """
        kind = self.opened.get_slice(self.name).get_dtype()
        if kind not in _FLOATS:
            raise ValueError(
                f"{self.file}: {self.name} is stored as {kind}; expected one of "
                f"{', '.join(_FLOATS)} (quantised weights are not supported)"
            )
        return np.dtype(_FLOATS[kind])  # jnp.dtype would warn of float64

    def read(self, dtype: Any = None) -> np.ndarray:
        """Returns its values.

        Args:
          dtype: a float type; None = as stored.

        Raises:
          ValueError: if it does not hold floats, or a value is NaN, infinite or beyond the range of
            `dtype`.
        """
        self.dtype()
        value = self.opened.get_tensor(self.name)
        if (num := not_finite(value)) > 0:
            raise ValueError(
                f"{self.file}: {self.name} holds {num} values of {value.size} that are NaN or "
                "infinite: the training that wrote it diverged, or the file is damaged; use an "
                "earlier checkpoint, or download the file again"
            )
        if dtype is None or value.dtype == dtype:
            return value
        with np.errstate(over="ignore"):
            cast = value.astype(dtype)
        if (num := not_finite(cast)) > 0:
            raise ValueError(
                f"{self.file}: {self.name} holds {num} values of {value.size} beyond the range of "
                f"{np.dtype(dtype)}: load the model in a wider type such as 'float32'"
            )
        return cast


def not_finite(values: np.ndarray) -> int:
    """Returns how many values are NaN or infinite.

    Args:
      values: an array of floats.
    """
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def float_type(dtype: str) -> Any:
    """Returns the type of weights that has a name.

    Args:
      dtype: the name, such as "float32".

    Raises:
      ValueError: if it is not a float type.
    """
    try:
        known = np.dtype(dtype).name in _FLOATS.values()
    except TypeError:
        known = False
    if not known:
        raise ValueError(
            f"dtype must be a float type such as 'float32', found {dtype!r}; known are "
            f"{', '.join(_FLOATS.values())}"
        )
    return np.dtype(dtype)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a model's weights.

    Args:
      folder: the folder of the model, or its GGUF file.

    Returns:
      model.safetensors, the files that the index names, or the GGUF file.

    Raises:
      FileNotFoundError: if one is missing.
      ValueError: if the index is damaged, or names a file outside the folder.
    """
    if folder.is_file():
        return [folder]
    if (folder / WEIGHTS).is_file():
        return [existing(folder / WEIGHTS)]
    if (folder / INDEX).is_file():
        places = read_json(existing(folder / INDEX)).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{folder / INDEX}: expected a weight_map of names to files")
        for name, file in places.items():
            if not _is_within(folder, file):
                raise ValueError(
                    f"{folder / INDEX}: {name} is in {shown(file)}; expected the name of a "
                    ".safetensors file in the folder"
                )
        return [existing(folder / name) for name in sorted(set(places.values()))]
    for pickled in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (folder / pickled).is_file():
            raise FileNotFoundError(
                f"{folder} has its weights only as a pickle ({pickled}), which is not read because "
                "it can run any code: convert it where torch and transformers are installed, by "
                "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    return [existing(folder / WEIGHTS)]


def open_weights(file: Path) -> Any:
    """Opens a safetensors or GGUF file, whose tensors are memory-mapped.

    Args:
      file: the path of an existing file; it is a GGUF file unless it ends in .safetensors.

    Returns:
      The context manager of `safetensors.safe_open`, or the same for a GGUF file.

    Raises:
      ValueError: if the file is damaged.
    """
    if file.suffix != ".safetensors":
        return Weights(read_header(file))
    package = safetensors()
    try:
        return package.safe_open(file, framework="numpy")
    except (package.SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is not a complete safetensors file: {error}; "
            "download it again (by `git lfs pull` if it is a Git LFS pointer)"
        ) from error


def check_size(name: str, declared: int, stored: int, what: str) -> None:
    """Raises ValueError if a size in config.json is larger than the files allow.

    Args:
      name: the name of the field.
      declared: its value.
      stored: the largest value that the files allow.
      what: what the files hold `stored` of, for the message.

    Raises:
      ValueError: with the field and both numbers.
    """
    if declared > stored:
        raise ValueError(
            f"{name} is {declared}, but the weights hold {stored} {what} in all: they belong to "
            "another config"
        )


def num_values(stored: Iterable[Stored]) -> int:
    """Returns how many values tensors have in all, from the headers of their files.

    Args:
      stored: the tensors.
    """
    return sum(math.prod(tensor.shape()) for tensor in stored)


def existing(path: Path) -> Path:
    """Returns the path of a file after checking that it exists and can be read.

    Args:
      path: the path of the file.

    Raises:
      FileNotFoundError: if there is no such file; the message lists the files of the folder.
      ValueError: if this user may not read it.
    """
    if not os.path.isfile(path):
        names = sorted(file.name for file in path.parent.iterdir())
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise FileNotFoundError(f"{path} is missing; the folder has {listed or 'nothing'}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: permission denied; run `chmod +r {path}`")
    return path


def safetensors() -> Any:
    """Imports the package safetensors, and returns it with its module `numpy`.

    Raises:
      ImportError: if it is missing; the message names the extra to install.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "model.safetensors needs the package safetensors: pip install 'shatter-lm[pretrained]'"
        ) from error
    return safetensors


def _is_within(folder: Path, name: Any) -> bool:
    """Returns whether an entry of an index names a file in the folder.

    The file may be a link that leads anywhere, because the cache of the hub consists of such links.
    A folder in the name must not lead out of the model's folder.
    """
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0"}:
        return False
    return Path(os.path.realpath((folder / path).parent)).is_relative_to(os.path.realpath(folder))
