"""The metrics of a run: means over batches, and the rows of metrics.jsonl."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from shatter.cli.common import processes
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import Mean
from shatter.data.atomic import write_atomically

Record = dict[str, float]
"""One row of the metrics: `step`, `epoch` and measures by name."""

COLLAPSED = 0.01
"""Nats a token: with less entropy a policy of short completions has one for each prompt."""

Sums = dict[str, list[float]]
"""Weighted sums and their weights by name, of which means are made."""


def is_evaluation(row: Record) -> bool:
    """Returns whether a row is of an evaluation; the others are of training."""
    return "learning_rate" not in row


def fetch(on_device: Sequence[Any], first: int) -> list[dict[str, Any]]:
    """Fetches the metrics of batches from the devices.

    Args:
      on_device: the metrics that the steps returned, batch by batch.
      first: the number of the first batch.

    Returns:
      The metrics, on the host.

    Raises:
      UsageError: naming the first metric that is not finite, and its batch.
    """
    fetched = processes.fetch(list(on_device))
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
    """Adds the metrics of an update to the sums over the updates before it.

    A `Mean` over rows, such as the objective, counts by the weight of its rows, so that a mean over
    updates is the mean over all their rows. `kl` and `grad_norm` count once per update.

    Args:
      sums: the sums over the updates before.
      batches: the metrics of the update's batches, whose `Mean`s together weigh at most 1.
      weight: the weight of the update's rows.

    Returns:
      The sums over all updates.
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
    """Returns the means and the loss that they make; a mean over nothing is absent."""
    row = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
    if "objective" in row:
        row["loss"] = row.pop("objective") + config.kl_weight * row.get("kl", 0.0)
    return row


def warn_of_collapse(rows: Sequence[Record], row: Record) -> None:
    """Warns when the entropy of a token falls below `COLLAPSED`, once each time that it falls.

    Args:
      rows: the rows before.
      row: the new row; only those of reinforcement learning have the entropy.
    """
    entropy = row.get("entropy", math.inf)
    before = next((r["entropy"] for r in reversed(rows) if "entropy" in r), math.inf)
    if entropy < COLLAPSED <= before:
        logging.warning(
            "the policy says hardly more than one thing to a prompt: the entropy of a token is "
            "%.4f nats. Raise --beta, or lower --learning_rate, if it should keep its variety.",
            entropy,
        )


class Log:
    """The file metrics.jsonl, one row a line; a row is on the disk before the next step begins.

    Only the first process has a file; the others keep the rows of their own steps in memory.

    Attributes:
      rows: the rows so far.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._writes = processes.is_first()
        self._board = _tensorboard(folder) if self._writes else None
        self._lines: list[bytes] = []
        self.rows: list[Record] = []

    def digest(self) -> str:
        """Returns the sha256 of all rows written so far."""
        return hashlib.sha256(b"".join(self._lines)).hexdigest()

    def truncate(self, num_rows: int, digest: str | None = None) -> None:
        """Keeps the first rows that an earlier process wrote, and cuts off the others.

        Args:
          num_rows: how many rows to keep.
          digest: the sha256 of these rows when they were written; None = unknown.

        Raises:
          UsageError: naming the file, if it cannot be read, has fewer rows, or a row is damaged.
        """
        if not self._writes:
            return
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
        content = b"".join(lines)
        if digest not in (None, now := hashlib.sha256(content).hexdigest()):
            raise UsageError(
                f"{self._path} is damaged: the sha256 of its first {num_rows} rows was {digest} "
                f"when they were written, and is {now} now"
            )
        write_atomically(self._path, content)
        self._lines, self.rows = lines, rows

    def _read(self, number: int, line: bytes) -> Record:
        """Parses a line.

        Raises:
          UsageError: naming the file and the line, if it is not a row of metrics.
        """
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
          UsageError: if a number is not finite, which JSON cannot express.
        """
        for name, value in row.items():
            if not math.isfinite(value):
                raise UsageError(
                    f"{name} is {value} at step {row['step']}: the run went astray; lower "
                    "--learning_rate, or go on from the last checkpoint with another"
                )
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        if self._writes:
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
        """Closes the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    """Returns a writer of TensorBoard files if tensorboardX is installed, and otherwise None."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def csv_rows(config: Config, history: Iterable[Mapping[str, float]]) -> Iterable[tuple]:
    """Yields the metrics as rows of `run_folder.CSV_COLUMNS`."""
    for row in history:
        for name, value in row.items():
            if name != "step":
                start = (config.dataset_name, config.objective, "", config.seed)
                yield *start, int(row["step"]), name, f"{value:.8g}"
