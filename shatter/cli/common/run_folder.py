"""A run folder: config.json, results, metrics.csv, summary.json, figures; every write is atomic."""

import csv
import dataclasses
import io
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import LOCK, alone

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
"""The names that `replaced` gives: process and a random number."""

CSV_COLUMNS = ("setting", "objective", "arm", "seed", "step", "metric", "value")


@contextmanager
def open_run_folder(
    path: str,
    config: Any,
    *,
    free: Sequence[str] = ("run_dir",),
    flag: str = "--run_dir",
    **facts: Any,
) -> Iterator[Path]:
    """Makes a run folder, or opens that of an earlier run with the same config to resume it.

    The folder is this process's alone until the block ends.

    Args:
      path: the folder.
      config: a frozen dataclass.
      free: its fields that may differ between a run and its resumption.
      flag: that names the folder, for messages.
      **facts: what else a resumed run must share, for example a checksum of its data.

    Yields:
      The folder.

    Raises:
      UsageError: as `begin_or_resume`, or if another process works on the folder.
    """
    with alone(path, flag):
        yield begin_or_resume(path, config, free=free, flag=flag, **facts)


def begin_or_resume(
    path: str, config: Any, *, free: Sequence[str], flag: str, **facts: Any
) -> Path:
    """Writes the config of a new run, or compares that of an earlier one with the same folder.

    What a killed process had half written is removed: the folder must be this process's alone.

    Args:
      path: the folder.
      config: a frozen dataclass.
      free: its fields that may differ between a run and its resumption.
      flag: that names the folder, for messages.
      **facts: what else a resumed run must share.

    Returns:
      The folder.

    Raises:
      UsageError: if the folder holds a run with another config, a damaged config, or other files.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    wanted = {name: value for name, value in wanted.items() if name not in free} | facts
    file = folder / "config.json"
    if not file.exists():
        if any(found.name != LOCK for found in folder.iterdir()):
            raise UsageError(
                f"{folder} holds files but no config.json, so it is no run folder: choose another "
                f"{flag}"
            )
        write_json(file, wanted)
        return folder
    found = read_json(file, mend=f"delete the folder, or choose another {flag}")
    differing = [
        f"{name}: found {found.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(found.keys() | wanted.keys())
        if name not in free and found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UsageError(
            f"{folder} holds a run with another config ({'; '.join(differing)}; found in {file}): "
            f"choose another {flag}, or give the same flags to resume it"
        )
    return folder


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all; a number that is not finite, which JSON lacks, is null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(
    path: Path,
    kind: type = dict,
    *,
    mend: str = "delete it, and the run makes it anew",
) -> Any:
    """Reads a file of JSON.

    Args:
      path: the file.
      kind: what it holds: dict, list or float.
      mend: how to go on without it, for the message.

    Returns:
      What it holds.

    Raises:
      UsageError: if it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged ({error}): {mend}") from error
    if not isinstance(found, kind):
        kinds = {dict: "an object", list: "a list", float: "a number"}
        raise UsageError(
            f"{path} is damaged (expected {kinds[kind]}, found {type(found).__name__}): {mend}"
        )
    return found


def write_csv(path: Path, rows: Iterable[tuple]) -> None:
    """Writes rows of `CSV_COLUMNS` whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def metric_rows(
    setting: str, objective: str, arm: str, steps: np.ndarray, metrics: dict[str, np.ndarray]
) -> Iterable[tuple]:
    """Rows of `CSV_COLUMNS` from metrics `[S, R]`; steps `[R]` are queries or gradient steps."""
    for name, values in sorted(metrics.items()):
        for seed, curve in enumerate(values):
            for step, value in zip(steps, curve, strict=True):
                yield setting, objective, arm, seed, int(step), name, f"{value:.6g}"


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file.

    Raises:
      UsageError: if it is damaged.
    """
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise UsageError(
            f"{path} is damaged ({error}): delete it, and the run makes it anew"
        ) from error


def remove_temporaries(folder: Path, *, age: float = 0.0) -> None:
    """Removes what killed processes had half written in a folder by `replaced`, and nothing else.

    Args:
      folder: the folder.
      age: files touched within so many seconds stay, for another process may be writing them.
    """
    for left in folder.iterdir():
        if _TEMPORARY.fullmatch(left.name) and time.time() - left.stat().st_mtime >= age:
            left.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    with replaced(path) as file:
        file.write(text.encode())


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of another when it is whole and on the disk.

    Its temporary name is unique, because several processes may write one file of a shared cache.

    Args:
      path: what is replaced; its folder must exist.

    Yields:
      The file, open for bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
