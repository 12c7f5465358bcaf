"""Folders that are saved whole or not at all, beside which nothing is left."""

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
    """Writes a folder beside its place, and moves it there when all is written.

    A new folder then appears at once and whole; in an existing one file after file is replaced, the
    config last, so that no file is ever damaged. Where the config changes, the old one goes first:
    a save that is killed between two files leaves a folder that no one reads, not a mixture of two
    models. Weights and tokenizer files that the new ones replace are removed, other files stay.
    What a killed process left beside the folder, the next one removes.

    Args:
      folder: where to; made where it is not.
      config: the file that is moved last: "config.json" or "adapter_config.json".

    Yields:
      An empty folder to write to.
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
      path: of the file.
      value: what JSON can hold, NaN and the infinities not among it.
    """
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, as readable for others as any file of this process.

    Args:
      file: a new one.
      tensors: by name, contiguous.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)  # as the umask has it; the package writes 0600
    safetensors().numpy.save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode)


def write_index(folder: Path, places: Mapping[str, str], total: int) -> None:
    """Writes the index of shards.

    Args:
      folder: of the model.
      places: file by name of tensor.
      total: bytes of all tensors.
    """
    index = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    write_json(folder / INDEX, index)


def check_finite(leaves: Iterable[tuple[str, np.ndarray]]) -> None:
    """Refuses parameters that no one could load again.

    Args:
      leaves: of parameters, by path.

    Raises:
      ValueError: if one is not of floats, or holds NaN or an infinity.
    """
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path} is of {leaf.dtype}; expected a float type")
        if (num := not_finite(leaf)) > 0:
            raise ValueError(
                f"{path} holds {num} values of {leaf.size} that are NaN or infinite: the training "
                "diverged, and nothing is saved; take an earlier checkpoint, or a smaller step"
            )


def _remove_stale(target: Path) -> None:
    """Removes what dead processes were writing for the same place."""
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
    """Puts the files of a finished folder into place and removes those that they replace."""
    if not target.exists():
        os.rename(staging, target)
        return
    new, is_weights = {file.name for file in staging.iterdir()}, _WEIGHT_FILES[config].fullmatch
    weights = sorted(name for name in new if is_weights(name))  # the index is last
    others = sorted(new - {*weights, config})
    old = target / config
    if old.is_file() and old.read_bytes() != (staging / config).read_bytes():
        old.unlink()
    if INDEX in new:  # no index stands while there may be shards of two models
        (target / INDEX).unlink(missing_ok=True)
    for name in weights:
        os.replace(staging / name, target / name)
    for file in sorted(target.iterdir()):  # an old index goes after the old whole file
        old_tokenizer = "tokenizer.json" in new and file.name in TOKENIZER_FILES
        if file.name not in new and (old_tokenizer or is_weights(file.name)):
            file.unlink()
    for name in (*others, config):
        os.replace(staging / name, target / name)
