"""Run folders: config.json, metrics.csv, summary.json, each written whole or not at all."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import LOCK, alone
from shatter.data.atomic import remove_unfinished, replacing, write_atomically

CHECKSUM = "checksum"
"""The field of config.json by which a flipped bit in a flag that may differ is found."""

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

    No other process can open the folder until the block ends.

    Args:
      path: the folder.
      config: a frozen dataclass.
      free: its fields that may differ between a run and its resumption.
      flag: the flag that names the folder, for messages.
      **facts: what else a resumed run must share, for example a checksum of its data.

    Yields:
      The folder.

    Raises:
      UsageError: as `begin_or_resume`, or if another process works on the folder.
    """
    with alone(path, flag):
        yield begin_or_resume(path, config, free=free, flag=flag, **facts)


def begin_or_resume(
    path: str,
    config: Any,
    *,
    free: Sequence[str] = (),
    apart: Sequence[str] = (),
    flag: str,
    **facts: Any,
) -> Path:
    """Writes the config of a new run, or compares it with that of the earlier run in the folder.

    Files that killed processes left half written are removed, so no other process may be using the
    folder.

    Args:
      path: the folder.
      config: a frozen dataclass. Its class variable `OLDER_DEFAULTS`, if it has one, has the
        defaults of older versions by the name of the flag, for messages.
      free: its fields that may differ between a run and its resumption. They are recorded, as the
        command that began the run gave them, and not compared; a checksum finds damage in them.
      apart: its fields that are recorded elsewhere; they are neither written nor compared.
      flag: the flag that names the folder, for messages.
      **facts: what else a resumed run must share. A fact that an older version did not record is
        not compared, nor is a field that it did not have and that is at its default now.

    Returns:
      The folder.

    Raises:
      UsageError: if the folder holds a run with another config, a damaged config, or other files.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    record = {name: value for name, value in fields.items() if name not in apart} | facts
    if free:  # which nothing else would find damaged
        record[CHECKSUM] = _checksum(record)
    file = folder / "config.json"
    if not file.exists():
        if any(content.name != LOCK for content in folder.iterdir()):
            raise UsageError(
                f"{folder} holds files but no config.json, so it is not a run folder: choose "
                f"another {flag}"
            )
        write_json(file, record)
        return folder
    earlier = read_json(file, mend=f"delete the folder, or choose another {flag}")
    if earlier.get(CHECKSUM, _checksum(earlier)) != _checksum(earlier):
        raise UsageError(
            f"{file} is damaged or was changed by hand (its {CHECKSUM} does not fit): delete the "
            f"folder, or choose another {flag}; or delete the line with the {CHECKSUM}"
        )
    new_facts = facts.keys() - fields.keys() - earlier.keys()
    # A flag that the earlier run's version did not have had no effect, as it has at its default.
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    unset = {name for name in fields if getattr(config, name) == defaults[name]} - earlier.keys()
    names = sorted((earlier.keys() | record.keys()) - {CHECKSUM, *apart, *new_facts, *unset})
    differing = [name for name in names if earlier.get(name) != record.get(name)]
    counting = [name for name in differing if name not in free]
    if counting:
        # A path that differs may be why a checksum does, so paths are shown too.
        paths = [name for name in differing if name in free and name in earlier]
        both = [
            f"{name}: found {earlier.get(name)!r}, wanted {record.get(name)!r}"
            for name in (*counting, *(name for name in paths if f"--{name}" != flag))
        ]
        older = getattr(config, "OLDER_DEFAULTS", {})
        advice = [
            f"; the default was {older[name]} in older versions: pass --{name}={older[name]}"
            for name in counting
            if name in older and (earlier.get(name), record[name]) == (older[name], defaults[name])
        ]
        raise UsageError(
            f"{folder} holds a run with another config ({'; '.join(both)}; found in {file}): "
            f"choose another {flag}, or give the same flags to resume it{''.join(advice)}"
        )
    for inner, _, _ in os.walk(folder):
        remove_unfinished(inner)
    return folder


def _checksum(record: dict[str, Any]) -> str:
    """Returns the sha256 of a record, its own checksum left out."""
    rest = {name: value for name, value in _finite(record).items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file; numbers that are not finite, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(
    path: Path,
    kind: type = dict,
    *,
    mend: str = "delete it, and the run makes it anew",
) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      kind: the type that it holds: dict, list or float.
      mend: how to go on without it, for the message.

    Returns:
      The value in the file.

    Raises:
      UsageError: if the file cannot be read, or holds another type.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged ({error}): {mend}") from error
    if not isinstance(value, kind):
        kinds = {dict: "an object", list: "a list", float: "a number"}
        raise UsageError(
            f"{path} is damaged (expected {kinds[kind]}, found {type(value).__name__}): {mend}"
        )
    return value


def write_csv(path: Path, rows: Iterable[tuple], columns: Sequence[str] = CSV_COLUMNS) -> None:
    """Writes a table."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def metric_rows(
    setting: str, objective: str, arm: str, steps: np.ndarray, metrics: dict[str, np.ndarray]
) -> Iterable[tuple]:
    """Yields rows of `CSV_COLUMNS` from metrics `[S, R]`; steps `[R]` count queries or steps."""
    for name, values in sorted(metrics.items()):
        for seed, curve in enumerate(values):
            for step, value in zip(steps, curve, strict=True):
                yield setting, objective, arm, seed, int(step), name, f"{value:.6g}"


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file, whose folder is made if it is missing."""
    with replacing(path) as file:
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


def remove_folder(path: Path) -> None:
    """Removes a folder if it exists."""
    if path.exists():
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    write_atomically(path, text.encode())
