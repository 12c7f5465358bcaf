"""Saves and restores the ensemble of a project."""

from pathlib import Path
from typing import Any, NamedTuple

from shatter import training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints
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
    with _checkpoints(folder) as checkpoints:
        arrays = {"states": state.members.states}
        checkpoints.save(state.num_updates, arrays, {"history": {"rows": state.history}})


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
    with _checkpoints(folder) as checkpoints:
        number = checkpoints.newest_sound()
        if not number:
            return EnsembleState(start, 0, [])
        seal_if_old(checkpoint_folder(folder, number))
        try:
            saved = checkpoints.restore(number, {"states": start.states}, ["history"])
        except UsageError as error:
            raise UsageError(
                f"{error}: delete that folder to go on from the one before; the answers are safe"
            ) from error
    return EnsembleState(start._replace(states=saved["states"]), number, saved["history"]["rows"])


def checkpoint_folder(folder: Path, num_updates: int | None = None) -> Path:
    """Returns the folder of a project's ensembles, or of the one after so many updates."""
    return folder / "ensemble" / ("" if num_updates is None else str(num_updates))


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(checkpoint_folder(folder), parts=("states", "history"))
