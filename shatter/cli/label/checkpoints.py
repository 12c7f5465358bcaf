"""Saves and restores the ensemble of a project."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from shatter import training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import newest_sound_step, open_checkpoints, seal_checkpoint
from shatter.cli.label.folder import seal_if_old


class EnsembleState(NamedTuple):
    """The present state of a project's ensemble.

    Attributes:
      members: the members and their learners; `shared` is `(the ensemble's shared, table)`.
      num_updates: how many times it has learned.
      history: the measures at the start and after each time.
    """

    members: training.Members
    num_updates: int
    history: list[dict[str, Any]]


def save(folder: Path, state: EnsembleState) -> None:
    """Saves an ensemble, whole or not at all, with checksums; the one before it is kept.

    Args:
      folder: the folder of the project.
      state: the ensemble, which must have learned once more than those that are saved.
    """
    with _checkpoints(folder) as manager:
        args = {
            "states": ocp.args.StandardSave(state.members.states),
            "history": ocp.args.JsonSave({"rows": state.history}),
        }
        manager.save(state.num_updates, args=ocp.args.Composite(**args))
    seal_checkpoint(checkpoint_folder(folder, state.num_updates))


def restored(folder: Path, start: training.Members) -> EnsembleState:
    """Restores the ensemble that was saved last, or the one before it if that is damaged.

    Args:
      folder: the folder of the project.
      start: the members before any answer.

    Returns:
      The ensemble; that of the start if none was saved.

    Raises:
      UsageError: if none of those that were saved can be read.
    """
    with _checkpoints(folder) as manager:
        number = newest_sound_step(manager, checkpoint_folder(folder))
        if not number:
            return EnsembleState(start, 0, [])
        seal_if_old(checkpoint_folder(folder, number))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start.states)
        args = {"states": ocp.args.StandardRestore(abstract), "history": ocp.args.JsonRestore()}
        try:
            saved = manager.restore(number, args=ocp.args.Composite(**args))
        except Exception as error:
            raise UsageError(
                f"the ensemble of {checkpoint_folder(folder, number)} cannot be read ({error}): "
                "delete that folder to go on from the one before; the answers are safe"
            ) from error
    return EnsembleState(start._replace(states=saved["states"]), number, saved["history"]["rows"])


def checkpoint_folder(folder: Path, num_updates: int | None = None) -> Path:
    """Returns the folder of a project's ensembles, or of the one after so many updates."""
    return folder / "ensemble" / ("" if num_updates is None else str(num_updates))


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    return open_checkpoints(checkpoint_folder(folder), item_names=("states", "history"))
