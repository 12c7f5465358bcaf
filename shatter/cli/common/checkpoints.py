"""Checkpoints with checksums: the one module that calls orbax."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging

from shatter.cli.common import checksums, processes
from shatter.cli.common.binary import UsageError
from shatter.cli.common.run_folder import read_json, write_json

METADATA = "_CHECKPOINT_METADATA"
SOFTWARE = "software.json"
"""The file of a checkpoint that records its number and the software that computed it."""


class Checkpoints:
    """The numbered checkpoints of a folder, as a context manager.

    A checkpoint is saved whole or not at all, and does not touch those before it. It has named
    parts, each of which is a tree of arrays or a JSON object. Of several processes each saves and
    restores its own parts of the arrays, so all of them call the same methods in the same order.

    Attributes:
      folder: the folder, with a folder a checkpoint.
    """

    def __init__(self, folder: Path, *, parts: Sequence[str], max_to_keep: int = 2) -> None:
        """Opens the checkpoints; what killed processes left half saved is removed.

        orbax reads the metadata of every checkpoint at this point, and finds none if one cannot be
        read. Therefore damaged checkpoints are removed first, if there is a sound one.

        Args:
          folder: where the checkpoints are, or will be.
          parts: the names of a checkpoint's parts.
          max_to_keep: how many checkpoints to keep. The one before the newest serves if the newest
            is damaged.

        Raises:
          UsageError: if the checkpoints cannot be opened and none of them is sound.
        """
        self.folder = folder
        processes.first(lambda: _remove_unreadable(folder))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_names=tuple(parts)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the numbers of the checkpoints, increasing."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.folder / str(step)

    def delete(self, step: int) -> None:
        """Deletes a checkpoint."""
        self._manager.delete(step)

    def save(
        self, step: int, arrays: Mapping[str, Any], records: Mapping[str, Any] | None = None
    ) -> None:
        """Saves a checkpoint, with the software that computed it and checksums of all its files.

        Args:
          step: its number, which must be new.
          arrays: trees of arrays by part.
          records: JSON objects by part.
        """
        parts: dict[str, Any] = {
            name: ocp.args.StandardSave(tree) for name, tree in arrays.items()
        } | {name: ocp.args.JsonSave(record) for name, record in (records or {}).items()}
        self._manager.save(step, args=ocp.args.Composite(**parts))
        folder = self.path(step)
        if processes.is_first():
            write_json(folder / SOFTWARE, {"name": folder.name, **software()})
            checksums.seal(folder)

    def restore(self, step: int, like: Mapping[str, Any], records: Sequence[str] = ()) -> Any:
        """Restores parts of a checkpoint.

        Args:
          step: its number.
          like: trees of arrays by part, whose shapes, types and shardings the restored ones get,
            on whatever mesh they were saved.
          records: the parts that are JSON objects.

        Returns:
          The parts by name.

        Raises:
          UsageError: if they cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(like))
        parts: dict[str, Any] = {
            name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()
        } | {name: ocp.args.JsonRestore() for name in records}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**parts))
        except Exception as error:  # orbax and tensorstore have many kinds
            raise UsageError(
                f"the checkpoint {self.path(step)} cannot be read ({error})"
            ) from error

    def newest_sound(self) -> int:
        """Returns the number of the newest undamaged checkpoint, and deletes those after it.

        Returns:
          The number; 0 if there is no checkpoint.

        Raises:
          UsageError: if there are checkpoints and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                checksums.verify(self.path(step))
                _assert_not_renamed(self.path(step))
            except UsageError as error:
                if step == steps[0]:
                    raise UsageError(
                        f"{error}. There is no older checkpoint: delete {self.folder} to begin "
                        "again"
                    ) from error
                logging.warning("%s. The run goes on from the checkpoint before it.", error)
                self.delete(step)
            else:
                return step
        return 0


def software() -> dict[str, Any]:
    """Returns the software and the backend that the bits of a result depend on, by name."""
    return {
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
    }


def assert_same_software(folder: Path) -> None:
    """Raises an error if a checkpoint was computed with other versions, which give other bits.

    Args:
      folder: the folder of the checkpoint; one without a record of its software passes.

    Raises:
      UsageError: naming each part that differs, and both values.
    """
    if not (folder / SOFTWARE).is_file():
        return
    recorded, now = read_json(folder / SOFTWARE), software()
    differing = [
        f"{name}: found {recorded.get(name)!r}, now {now[name]!r}"
        for name in now
        if recorded.get(name) != now[name]
    ]
    if differing:
        raise UsageError(
            f"the checkpoint {folder} was computed with other software ({'; '.join(differing)}), "
            "so a resumed run would differ from the uninterrupted one: go on with that software, "
            f"or delete {folder.parent} to begin again"
        )


def _remove_unreadable(folder: Path) -> None:
    """Removes damaged checkpoints if orbax cannot read the metadata of all of them.

    Raises:
      UsageError: if no sound checkpoint would be left.
    """
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    if all(map(_has_metadata, steps)):
        return
    damaged = {path: reason for path in steps if (reason := _damage(path))}
    if not damaged or len(damaged) == len(steps):
        reasons = "; ".join(damaged.values()) or f"the {METADATA} of one is not a JSON object"
        raise UsageError(
            f"{reasons}. There is no other checkpoint to go on from: delete {folder} to begin again"
        )
    for path, reason in damaged.items():
        logging.warning("%s. That checkpoint is removed.", reason)
        shutil.rmtree(path)


def _has_metadata(path: Path) -> bool:
    """Returns whether the metadata of a checkpoint are absent or can be read by orbax."""
    file = path / METADATA
    try:
        return not file.exists() or isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _damage(path: Path) -> str | None:
    """Returns how a checkpoint differs from its checksums; None if it does not."""
    try:
        checksums.verify(path)
    except UsageError as error:
        return str(error)
    return None


def _assert_not_renamed(folder: Path) -> None:
    file = folder / SOFTWARE
    name = read_json(file).get("name", folder.name) if file.is_file() else folder.name
    if name != folder.name:
        raise UsageError(f"the checkpoint {folder} is the one that was saved as {name}, renamed")
