"""What a run measures: means over batches that add up, and the rows of metrics.jsonl."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import Mean

Record = dict[str, float]
"""One row of the metrics: `step`, `epoch` and what was measured."""

Sums = dict[str, list[float]]
"""By name what was added up and its weight: a mean as far as its updates are in."""


def is_evaluation(row: Record) -> bool:
    """Whether a row holds held-out measures; the others are of training."""
    return "learning_rate" not in row


def fetch(on_device: Sequence[Any], first: int) -> list[dict[str, Any]]:
    """Metrics of batches as numbers.

    Args:
      on_device: what the steps returned, batch by batch.
      first: the number of the first of them.

    Returns:
      The same, on the host.

    Raises:
      UsageError: naming the first that is not finite and its batch.
    """
    fetched = jax.device_get(list(on_device))
    for number, metrics in enumerate(fetched, start=first):
        for name in sorted(metrics, key=lambda name: name != "loss"):
            value = float(np.sum(np.asarray(metrics[name], np.float64)))
            if not math.isfinite(value):
                raise UsageError(
                    f"{name} is {value} at batch {number}: the run went astray; lower "
                    "--learning_rate, or go on from the last checkpoint with another"
                )
    return fetched


def add_update(sums: Sums, batches: Sequence[dict[str, Any]], weight: float) -> Sums:
    """Adds the metrics of an update, made of one batch or of several, to a mean over updates.

    A `Mean` over rows, the objective among them, counts by the weight of its rows, so that a mean
    over updates is that over all their rows; `kl` and `grad_norm` count once an update.

    Args:
      sums: of the updates before.
      batches: metrics of the update's batches, whose `Mean`s weigh at most 1 together.
      weight: of the update's rows.

    Returns:
      The sums with it.
    """
    added: Sums = {name: list(pair) for name, pair in sums.items()}
    for metrics in batches:
        for name, value in metrics.items():
            if isinstance(value, Mean):
                pair = added.setdefault(name, [0.0, 0.0])
                pair[0] += weight * float(value.total)
                pair[1] += weight * float(value.weight)
    once = {"grad_norm": float(batches[-1]["grad_norm"])}
    if "kl" in batches[0]:
        once["kl"] = sum(float(metrics["kl"]) for metrics in batches)
    for name, number in once.items():
        pair = added.setdefault(name, [0.0, 0.0])
        pair[0], pair[1] = pair[0] + number, pair[1] + 1.0
    return added


def means(config: Config, sums: Sums) -> Record:
    """The means; one over nothing is absent."""
    found = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
    if "objective" in found:
        found["loss"] = found.pop("objective") + config.kl_weight * found.get("kl", 0.0)
    return found


class Log:
    """metrics.jsonl: a row a line, on disk before the next step; and the rows so far."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._board = _tensorboard(folder)
        self._lines: list[bytes] = []
        self.rows: list[Record] = []

    def digest(self) -> str:
        """sha256 of the file as far as it is written."""
        return hashlib.sha256(b"".join(self._lines)).hexdigest()

    def truncate(self, num_rows: int, digest: str | None = None) -> None:
        """Keeps the first rows of an earlier process.

        Args:
          num_rows: how many.
          digest: sha256 of these rows when they were written; None = unknown.

        Raises:
          UsageError: naming the file, if it cannot be read, has fewer rows or a damaged one.
        """
        try:
            content = self._path.read_bytes() if num_rows and self._path.exists() else b""
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}") from error
        lines = content.splitlines(keepends=True)[:num_rows]
        if len(lines) < num_rows:
            raise UsageError(
                f"{self._path} has {len(lines)} rows and the checkpoint was made after {num_rows}"
            )
        rows = [self._read(number, line) for number, line in enumerate(lines, start=1)]
        found = hashlib.sha256(b"".join(lines)).hexdigest()
        if digest is not None and found != digest:
            raise UsageError(
                f"{self._path} is damaged: the sha256 of its first {num_rows} rows was {digest} "
                f"when they were written, and is {found}"
            )
        with run_folder.replaced(self._path) as file:
            file.write(b"".join(lines))
        self._lines, self.rows = lines, rows

    def _read(self, number: int, line: bytes) -> Record:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._path}:{number} is damaged ({error})") from error
        if not isinstance(row, dict) or not {"step", "epoch"} <= row.keys():
            raise UsageError(
                f"{self._path}:{number} is damaged: expected an object with step and epoch, found "
                f"{line[:40]!r}"
            )
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(
                    f"{self._path}:{number} is damaged: expected a number for {name}, found "
                    f"{value!r}"
                )
        return row

    def add(self, row: Record) -> None:
        """Appends a row.

        Raises:
          UsageError: if a number is not finite, which JSON cannot say.
        """
        for name, value in row.items():
            if not math.isfinite(value):
                raise UsageError(
                    f"{name} is {value} at step {row['step']}: the run went astray; lower "
                    "--learning_rate, or go on from the last checkpoint with another"
                )
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(line)
        self.rows.append(row)
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Ends the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    """A writer where tensorboardX is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def csv_rows(config: Config, history: Iterable[Mapping[str, float]]) -> Iterable[tuple]:
    """The history as rows of `run_folder.CSV_COLUMNS`."""
    for row in history:
        for name, value in row.items():
            if name != "step":
                start = (config.dataset_name, config.objective, "", config.seed)
                yield *start, int(row["step"]), name, f"{value:.8g}"
