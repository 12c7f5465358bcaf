"""Checkpoints that are verified before they are gone on from, and what computed them."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from shatter.cli.common import checksums
from shatter.cli.common.binary import UsageError
from shatter.cli.common.run_folder import read_json, write_json

METADATA = "_CHECKPOINT_METADATA"
SOFTWARE = "software.json"
"""The file of a checkpoint that says what computed it, and the checkpoint's name."""


def open_checkpoints(
    folder: Path, *, max_to_keep: int = 2, item_names: tuple[str, ...] | None = None
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a folder; what a killed process had half saved is removed.

    orbax reads the metadata of every checkpoint when it opens them. Where it could not, those that
    are not as they were saved are removed, if there is a sound one, and it opens the others.

    Args:
      folder: where they are, or will be.
      max_to_keep: how many; the one before the newest is there for when the newest is damaged.
      item_names: the parts of each; None = it has one.

    Returns:
      The manager.

    Raises:
      UsageError: if they cannot be opened and none of them is sound.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    # Before orbax looks: one that failed to open them finds none when it tries again.
    if not all(map(_has_metadata, steps)):
        damaged = {path: reason for path in steps if (reason := _damage(path))}
        if not damaged or len(damaged) == len(steps):
            reasons = "; ".join(damaged.values()) or f"the {METADATA} of one is no JSON object"
            raise UsageError(
                f"{reasons}. There is no other checkpoint to go on from: delete {folder} to begin "
                "again"
            )
        for path, reason in damaged.items():
            logging.warning("%s. That checkpoint is removed.", reason)
            shutil.rmtree(path)
    return ocp.CheckpointManager(folder.absolute(), options=options, item_names=item_names)


def _has_metadata(path: Path) -> bool:
    """Returns whether orbax can read what it reads of a checkpoint when it opens a folder."""
    file = path / METADATA
    try:
        return not file.exists() or isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _damage(path: Path) -> str | None:
    try:
        checksums.verify(path)
    except UsageError as error:
        return str(error)
    return None


def software() -> dict[str, Any]:
    """What the bits of a run depend on beside its config and data."""
    return {
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
    }


def seal_checkpoint(folder: Path) -> None:
    """Adds to a checkpoint its name, what it was computed with, and checksums of all its files."""
    write_json(folder / SOFTWARE, {"name": folder.name, **software()})
    checksums.seal(folder)


def assert_same_software(folder: Path) -> None:
    """Refuses a checkpoint that was computed with other versions: the bits would differ.

    Args:
      folder: of the checkpoint; one without a record passes.

    Raises:
      UsageError: naming each part that differs, and both values.
    """
    if not (folder / SOFTWARE).is_file():
        return
    found, now = read_json(folder / SOFTWARE), software()
    differing = [
        f"{name}: found {found.get(name)!r}, now {now[name]!r}"
        for name in now
        if found.get(name) != now[name]
    ]
    if differing:
        raise UsageError(
            f"the checkpoint {folder} was computed with other software ({'; '.join(differing)}), "
            "so that a resumed run would not be the uninterrupted one: go on with that software, "
            f"or delete {folder.parent} to begin again"
        )


def newest_sound_step(manager: ocp.CheckpointManager, folder: Path) -> int:
    """Returns the newest checkpoint that is as it was saved; those after it are deleted, and said.

    Args:
      manager: of the checkpoints.
      folder: where they are.

    Returns:
      Its step; 0 = there is no checkpoint.

    Raises:
      UsageError: if there are checkpoints and all of them are damaged.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            checksums.verify(folder / str(step))
            _assert_not_renamed(folder / str(step))
        except UsageError as error:
            if step == steps[-1]:
                raise UsageError(
                    f"{error}. There is no older checkpoint: delete {folder} to begin again"
                ) from error
            logging.warning("%s. Going on from the checkpoint before.", error)
            manager.delete(step)
        else:
            return step
    return 0


def _assert_not_renamed(folder: Path) -> None:
    file = folder / SOFTWARE
    name = read_json(file).get("name", folder.name) if file.is_file() else folder.name
    if name != folder.name:
        raise UsageError(f"the checkpoint {folder} is the one that was saved as {name}, renamed")
