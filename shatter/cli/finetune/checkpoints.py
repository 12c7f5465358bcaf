"""Checkpoints of a run: saved whole and sealed, verified before they are gone on from."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from shatter.cli.common import checkpoints, checksums
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.history import Log


class Found(NamedTuple):
    """A checkpoint to go on from.

    Attributes:
      step: of the optimiser, after which it was saved.
      state: the learner's.
      loop: the rest, as `save` got it.
    """

    step: int
    state: Any
    loop: dict[str, Any]


def open_checkpoints(config: Config, folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run folder; what a killed process had half saved is removed."""
    return checkpoints.open_checkpoints(
        folder / "checkpoints",
        max_to_keep=config.save_total_limit,
        item_names=("state", "loop"),
    )


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, loop: dict[str, Any], log: Log
) -> None:
    """Saves a checkpoint with its checksums, and that of the metrics as far as it counts them.

    Args:
      manager: of the checkpoints.
      step: of the optimiser, just done.
      state: the learner's.
      loop: what else a resumed run needs, as JSON.
      log: the metrics.
    """
    loop = loop | {"step": step, "rows": len(log.rows), "metrics": log.digest()}
    args = {"state": ocp.args.StandardSave(state), "loop": ocp.args.JsonSave(loop)}
    manager.save(step, args=ocp.args.Composite(**args))
    checksums.seal(_path(manager, step))


def resume(
    config: Config, manager: ocp.CheckpointManager, state: Any, facts: dict[str, str], log: Log
) -> Found | None:
    """The newest checkpoint that is as it was saved, or the one that was asked for.

    Later ones are deleted, and the metrics cut to what it counts.

    Args:
      config: the config.
      manager: of the checkpoints.
      state: a state, for its shapes and types.
      facts: of `plan.plan_facts`, which must be those that it was saved with.
      log: the metrics.

    Returns:
      The checkpoint; None = the run begins.

    Raises:
      UsageError: if there is no sound one among some, no such step, or other facts.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    if config.resume_from_checkpoint == "never":
        steps = []
    elif config.resume_from_checkpoint != "auto":
        if config.resume_from_checkpoint not in steps:
            raise UsageError(
                f"--resume_from_checkpoint={config.resume_from_checkpoint}: there are checkpoints "
                f"of the steps {steps[::-1]}"
            )
        steps = [int(config.resume_from_checkpoint)]
    for step in steps:
        try:
            found = _restore(manager, step, state, facts)
            log.truncate(found.loop["rows"], found.loop["metrics"])
        except _OtherFacts:
            raise
        except UsageError as error:
            if config.resume_from_checkpoint != "auto":
                raise UsageError(
                    f"{error}. Leave out --resume_from_checkpoint to go on from the newest that is "
                    "as it was saved"
                ) from error
            if step == steps[-1]:
                raise UsageError(
                    f"{error}. There is no other checkpoint to go on from: delete "
                    f"{manager.directory} to begin again"
                ) from error
            logging.warning("%s. Going on from the checkpoint before.", error)
            continue
        for later in manager.all_steps():
            if later > step:
                manager.delete(later)
        return found
    log.truncate(0)
    return None


class _OtherFacts(UsageError):
    """A checkpoint is sound, and of a run that is not this one."""


def _path(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)


def _restore(manager: ocp.CheckpointManager, step: int, state: Any, facts: dict[str, str]) -> Found:
    path = _path(manager, step)
    checksums.verify(path)
    try:
        loop = manager.restore(step, args=ocp.args.Composite(loop=ocp.args.JsonRestore()))["loop"]
        if loop["step"] != step:
            raise UsageError(f"the checkpoint {path} is that of step {loop['step']}, renamed")
        _assert_same(path, loop["facts"], facts)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return Found(step, manager.restore(step, args=args)["state"], loop)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the checkpoint {path} cannot be read ({error})") from error


def _assert_same(path: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    differing = [
        f"{name}: found {found.get(name)!r}, now {wanted.get(name)!r}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise _OtherFacts(
            f"the checkpoint {path} was made by another plan or other software "
            f"({'; '.join(differing)}), so that the rest of the run would not be that of the "
            f"uninterrupted one: go on with the same, or delete {path.parent} to begin again"
        )
