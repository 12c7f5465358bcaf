"""Saves folders of models so that an interrupted save never leaves a damaged one."""

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from shatter.models.tokenizer import FILES as TOKENIZER_FILES
from shatter.models.weight_files import INDEX, not_finite, safetensors

_WEIGHT_FILES = {
    "config.json": re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    "adapter_config.json": re.compile(r"adapter_model\.safetensors"),
}
"""The files of weights that belong to a config."""


@contextlib.contextmanager
def staged(folder: str | Path, *, config: str) -> Iterator[Path]:
    """Yields a temporary folder whose files replace those of a folder when the block ends.

    A new folder then appears complete. In an existing one the files are replaced one by one, the
    config last, so that none is ever half written. If the config changes, the old one is removed
    first: a save that is killed half-way leaves a folder that nothing loads, not a mixture of two
    models. Old weights and tokenizer files that the new ones replace are removed; other files stay.
    Temporary folders that killed processes left behind are removed too.

    Args:
      folder: the folder to write to, made if it is missing.
      config: the file that is moved last: "config.json" or "adapter_config.json".

    Yields:
      The temporary folder, empty.
    """
    target = Path(folder).expanduser().resolve()
    _remove_stale(target)
    staging = target.parent / f".{target.name}.saving-{os.getpid()}"
    staging.mkdir(parents=True)
    try:
        yield staging
        _move(staging, target, config)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file of settings.

    Args:
      path: the path of the file.
      value: the settings; JSON cannot hold NaN and infinities.
    """
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file.

    Args:
      file: the path of a new file.
      tensors: contiguous arrays by name.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)  # by the umask, where the package would set 0600
    safetensors().numpy.save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode)


def write_index(folder: Path, places: Mapping[str, str], total: int) -> None:
    """Writes the index of weights that are split into several files.

    Args:
      folder: the folder of the model.
      places: the name of the file of every tensor, by the tensor's name.
      total: the size of all tensors, in bytes.
    """
    index = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    write_json(folder / INDEX, index)


def check_finite(leaves: Iterable[tuple[str, np.ndarray]]) -> None:
    """Raises ValueError for parameters that could not be loaded again.

    Args:
      leaves: paths and leaves of the parameters.

    Raises:
      ValueError: if a leaf does not hold floats, or holds NaN or an infinity.
    """
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path} has the type {leaf.dtype}; expected a float type")
        if (num := not_finite(leaf)) > 0:
            raise ValueError(
                f"{path} holds {num} values of {leaf.size} that are NaN or infinite: the training "
                "diverged, and nothing is saved; use an earlier checkpoint, or train again with a "
                "lower learning rate"
            )


def _remove_stale(target: Path) -> None:
    """Removes the temporary folders of dead processes, and of this one, for the same target."""
    own = re.compile(rf"\.{re.escape(target.name)}\.saving-(\d+)")
    if target.parent.is_dir():
        for path in target.parent.iterdir():
            match = own.fullmatch(path.name)
            if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _move(staging: Path, target: Path, config: str) -> None:
    """Moves the files of a finished folder into place, and removes those that they replace."""
    if not target.exists():
        os.rename(staging, target)
        return
    new, is_weights = {file.name for file in staging.iterdir()}, _WEIGHT_FILES[config].fullmatch
    weights = sorted(name for name in new if is_weights(name))  # the index is last
    others = sorted(new - {*weights, config})
    old = target / config
    if old.is_file() and old.read_bytes() != (staging / config).read_bytes():
        old.unlink()
    if INDEX in new:  # so that no index exists while files of two models may
        (target / INDEX).unlink(missing_ok=True)
    for name in weights:
        os.replace(staging / name, target / name)
    for file in sorted(target.iterdir()):  # an old model.safetensors goes before its index
        old_tokenizer = "tokenizer.json" in new and file.name in TOKENIZER_FILES
        if file.name not in new and (old_tokenizer or is_weights(file.name)):
            file.unlink()
    for name in (*others, config):
        os.replace(staging / name, target / name)
