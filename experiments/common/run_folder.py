"""A run folder: config.json, results, metrics.csv, summary.json, figures; every write is atomic."""

import csv
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.binary import UsageError

CSV_COLUMNS = ("setting", "objective", "arm", "seed", "step", "metric", "value")


def open_run_folder(
    path: str,
    config: Any,
    *,
    free: Sequence[str] = ("run_dir",),
    flag: str = "--run_dir",
    **facts: str,
) -> Path:
    """Makes a run folder, or opens the one of an earlier run with the same config to resume it.

    Args:
      path: the folder.
      config: a frozen dataclass.
      free: its fields that may differ between a run and its resumption.
      flag: that names the folder, for messages.
      **facts: what else a resumed run must share, for example a checksum of its data.

    Returns:
      The folder.

    Raises:
      UsageError: if the folder holds a run with another config, a damaged config, or other files.
    """
    folder = Path(path)
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    wanted = {name: value for name, value in wanted.items() if name not in free} | facts
    file = folder / "config.json"
    if not file.exists():
        # A file half written by a process that was killed is nobody's.
        if folder.exists() and any(file.suffix != ".tmp" for file in folder.iterdir()):
            raise UsageError(
                f"{folder} holds files but no config.json, so it is no run folder: choose another "
                f"{flag}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, wanted)
        return folder
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{file} is damaged ({error}): delete the folder, or choose another"
        ) from None
    differing = [
        f"{name}: found {found.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UsageError(
            f"{folder} holds a run with another config ({'; '.join(differing)}): choose another "
            f"{flag}, or give the same flags to resume it"
        )
    return folder


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      UsageError: if it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is damaged ({error}): delete it, and the run makes it anew"
        ) from error


def write_csv(path: Path, rows: Iterable[tuple]) -> None:
    """Writes rows of `CSV_COLUMNS` whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(rows)
    os.replace(temporary, path)


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
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file.

    Raises:
      UsageError: if it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise UsageError(
            f"{path} is damaged ({error}): delete it, and the run makes it anew"
        ) from error


def remove_folder(path: Path) -> None:
    """Removes a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
