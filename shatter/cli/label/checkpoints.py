"""The ensemble of a project on disk: whole or not at all, the one before kept, bits checked."""

from pathlib import Path
from typing import Any, NamedTuple

from shatter import training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints
from shatter.cli.label.folder import seal_if_old


class Ensemble(NamedTuple):
    """The ensemble as it stands.

    Attributes:
      members: the members and their learners; `shared` is `(the ensemble's shared, table)`.
      number: how many times it has learned.
      history: what each time was measured, the start included.
    """

    members: training.Members
    number: int
    history: list[dict[str, Any]]


def save(folder: Path, ensemble: Ensemble) -> None:
    """Puts an ensemble on disk, whole or not at all, with checksums; the one before stays.

    Args:
      folder: of the project.
      ensemble: the ensemble; its number must be new.
    """
    with _checkpoints(folder) as saved:
        arrays = {"states": ensemble.members.states}
        saved.save(ensemble.number, arrays, {"history": {"rows": ensemble.history}})


def restored(folder: Path, start: training.Members) -> Ensemble:
    """Reads the ensemble as it was saved last; one that is damaged is left for the one before.

    Args:
      folder: of the project.
      start: the members before any answer.

    Returns:
      The ensemble; that of the start if none was saved.

    Raises:
      UsageError: if none of those that were saved can be read.
    """
    with _checkpoints(folder) as saved:
        number = saved.newest_sound()
        if not number:
            return Ensemble(start, 0, [])
        seal_if_old(checkpoint_folder(folder, number))
        try:
            found = saved.restore(number, {"states": start.states}, ["history"])
        except UsageError as error:
            raise UsageError(
                f"{error}: delete that folder to go on from the one before; the answers are safe"
            ) from error
    return Ensemble(start._replace(states=found["states"]), number, found["history"]["rows"])


def checkpoint_folder(folder: Path, number: int | None = None) -> Path:
    """Returns where the ensembles of a project are, or the one that has learned so many times."""
    return folder / "ensemble" / ("" if number is None else str(number))


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(checkpoint_folder(folder), parts=("states", "history"))
