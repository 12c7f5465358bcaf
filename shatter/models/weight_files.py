"""Files of weights: opened, checked and read, tensor by tensor."""

import math
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from shatter.models.fields import shown
from shatter.models.tokenizer import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Stored(NamedTuple):
    """A tensor of a file that is open; nothing of it is read yet.

    Attributes:
      file: where it is.
      opened: the file, of `open_weights`.
      name: in the file.
    """

    file: Path
    opened: Any
    name: str

    def shape(self) -> tuple[int, ...]:
        """Its shape, of the file's header."""
        return tuple(self.opened.get_slice(self.name).get_shape())

    def dtype(self) -> Any:
        """Its type.

        Raises:
          ValueError: if it is not one of floats.
        """
        kind = self.opened.get_slice(self.name).get_dtype()
        if kind not in _FLOATS:
            raise ValueError(
                f"{self.file}: {self.name} is stored as {kind}; expected one of "
                f"{', '.join(_FLOATS)} (quantised weights are not supported)"
            )
        return np.dtype(_FLOATS[kind])  # numpy knows of float64 without a warning

    def read(self, dtype: Any = None) -> np.ndarray:
        """Its values.

        Args:
          dtype: a float type; None = as stored.

        Raises:
          ValueError: if the stored type is not one of floats, or a value is NaN, infinite or beyond
            the range of `dtype`.
        """
        self.dtype()
        value = self.opened.get_tensor(self.name)
        if (num := not_finite(value)) > 0:
            raise ValueError(
                f"{self.file}: {self.name} holds {num} values of {value.size} that are NaN or "
                "infinite: the training that wrote it diverged, or the file is damaged; take an "
                "earlier one, or fetch it again"
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
    """Counts what is NaN or infinite.

    Args:
      values: of floats.

    Returns:
      The number of entries.
    """
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def float_type(dtype: str) -> Any:
    """A type of weights by its name.

    Args:
      dtype: such as "float32".

    Returns:
      The type.

    Raises:
      ValueError: if it is not one of floats.
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
    """The files with the weights of a model.

    Args:
      folder: of the model.

    Returns:
      model.safetensors, or the shards that the index names.

    Raises:
      FileNotFoundError: if one is missing.
      ValueError: if the index is no index, or names a file that is not in the folder.
    """
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
                f"{folder} has its weights in pickled form only ({pickled}), which can run code "
                "and is not read: convert them where torch and transformers are installed, by "
                "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    return [existing(folder / WEIGHTS)]


def open_weights(file: Path) -> Any:
    """Opens a safetensors file; its tensors are memory-mapped.

    Args:
      file: an existing one.

    Returns:
      What `safetensors.safe_open` gives, a context manager.

    Raises:
      ValueError: if it is damaged.
    """
    package = safetensors()
    try:
        return package.safe_open(file, framework="numpy")
    except (package.SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}; fetch it "
            "again (by `git lfs pull` where it is a pointer)"
        ) from error


def check_size(name: str, declared: int, stored: int, what: str) -> None:
    """Refuses a size that the files cannot hold, before anything of that size is made.

    Args:
      name: of the field.
      declared: its value.
      stored: the largest that it could be.
      what: what the files have that many of.

    Raises:
      ValueError: naming the field and both numbers.
    """
    if declared > stored:
        raise ValueError(
            f"{name} is {declared}, but the weights hold {stored} {what} in all: they are not "
            "those of this config"
        )


def num_values(stored: Iterable[Stored]) -> int:
    """Counts the values of tensors.

    Args:
      stored: the tensors.

    Returns:
      Their number, of the files' headers alone.
    """
    return sum(math.prod(tensor.shape()) for tensor in stored)


def existing(path: Path) -> Path:
    """The path of a file that must be there.

    Args:
      path: of the file.

    Returns:
      `path`.

    Raises:
      FileNotFoundError: if it is not; it lists what the folder has.
      ValueError: if this user may not read it.
    """
    if not os.path.isfile(path):
        found = sorted(file.name for file in path.parent.iterdir())
        listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
        raise FileNotFoundError(f"{path} is missing; the folder has {listed or 'nothing'}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: permission denied; `chmod +r` it")
    return path


def safetensors() -> Any:
    """The package safetensors, imported when it is needed.

    Returns:
      The module, with its part `numpy`.

    Raises:
      ImportError: naming the extra to install.
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
    """Whether an index's entry names a file of the folder.

    A file that is a link is followed wherever it leads, because the hub's cache consists of them; a
    folder that is a link out of the model's folder is not.
    """
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0"}:
        return False
    return Path(os.path.realpath((folder / path).parent)).is_relative_to(os.path.realpath(folder))
