"""Checkpoints of a run, each verified before the run goes on from it."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from shatter.cli.common import checksums, processes
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints
from shatter.cli.finetune import plan
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.history import Log


class Resumed(NamedTuple):
    """A checkpoint to go on from.

    Attributes:
      step: the step of the optimiser after which it was saved.
      state: the learner's state.
      loop: the record that `save` got, and more.
    """

    step: int
    state: Any
    loop: dict[str, Any]


def open_checkpoints(config: Config, folder: Path) -> Checkpoints:
    """Opens the checkpoints of a run folder; what killed processes left half saved is removed."""
    return Checkpoints(
        folder / "checkpoints", parts=("state", "loop"), max_to_keep=config.save_total_limit
    )


def save(saved: Checkpoints, step: int, state: Any, loop: dict[str, Any], log: Log) -> None:
    """Saves a checkpoint, which records how many rows the metrics have and their checksum.

    Args:
      saved: the checkpoints.
      step: the step of the optimiser that has just been made.
      state: the learner's state.
      loop: what else a resumed run needs, as a JSON object.
      log: the metrics.
    """
    loop = loop | {"step": step, "rows": len(log.rows), "metrics": log.digest()}
    saved.save(step, {"state": state}, {"loop": loop})


def resume(
    config: Config, saved: Checkpoints, state: Any, facts: dict[str, str], log: Log
) -> Resumed | None:
    """Restores the newest undamaged checkpoint, or the one that was asked for.

    Later checkpoints are deleted, and the metrics are cut to the rows that it counts.

    Args:
      config: the config.
      saved: the checkpoints.
      state: a state, for its shapes and types.
      facts: the result of `plan.plan_facts`; the checkpoint must have been saved with the same.
      log: the metrics.

    Returns:
      The checkpoint; None = the run begins.

    Raises:
      UsageError: if all checkpoints are damaged, there is none of the step asked for, or it was
        saved with other facts.
    """
    steps = processes.first(lambda: _candidates(config, saved))
    for step in steps:
        try:
            resumed = _restore(saved, step, state, facts)
            counted = partial(log.truncate, resumed.loop["rows"], resumed.loop["metrics"])
            processes.first(counted)
        except _OtherFacts:
            raise
        except UsageError as error:
            if config.resume_from_checkpoint != "auto":
                raise UsageError(
                    f"{error}. Leave out --resume_from_checkpoint to go on from the newest "
                    "checkpoint that is not damaged"
                ) from error
            if step == steps[-1]:
                raise UsageError(
                    f"{error}. There is no other checkpoint to go on from: delete {saved.folder} "
                    "to begin again"
                ) from error
            logging.warning("%s. The run goes on from the checkpoint before it.", error)
            continue
        for later in saved.steps():
            if later > step:
                saved.delete(later)
        return resumed
    log.truncate(0)
    return None


def _candidates(config: Config, saved: Checkpoints) -> list[int]:
    """Returns the steps of the checkpoints to try, the first one first."""
    steps = saved.steps()
    if config.resume_from_checkpoint == "never":
        return []
    if config.resume_from_checkpoint == "auto":
        return steps[::-1]
    if config.resume_from_checkpoint not in steps:
        raise UsageError(
            f"--resume_from_checkpoint={config.resume_from_checkpoint}: there are checkpoints of "
            f"the steps {steps}"
        )
    return [int(config.resume_from_checkpoint)]


class _OtherFacts(UsageError):
    """A sound checkpoint belongs to another run."""


def _restore(saved: Checkpoints, step: int, state: Any, facts: dict[str, str]) -> Resumed:
    path = saved.path(step)
    processes.first(lambda: checksums.verify(path))
    loop = saved.restore(step, {}, ["loop"])["loop"]
    if not isinstance(loop, dict) or not {"step", "facts", "rows", "metrics"} <= loop.keys():
        raise UsageError(f"the checkpoint {path} cannot be read (its record is incomplete)")
    if loop["step"] != step:
        raise UsageError(f"the checkpoint {path} is that of step {loop['step']}, renamed")
    _assert_same(path, loop["facts"], facts)
    return Resumed(step, saved.restore(step, {"state": state})["state"], loop)


def _assert_same(path: Path, recorded: dict[str, str], now: dict[str, str]) -> None:
    """Refuses other data and software; warns of another mesh, which only rounds otherwise."""
    describe = lambda name: f"{name}: found {recorded.get(name)!r}, now {now.get(name)!r}"
    differing = [
        name for name in sorted(recorded.keys() | now.keys()) if recorded.get(name) != now.get(name)
    ]
    rounding = [describe(name) for name in differing if name in plan.ROUNDING and name in recorded]
    if rounding and processes.is_first():
        logging.warning(
            "The checkpoint %s was made on other devices (%s): the run goes on with the same "
            "examples, and its numbers are those of the uninterrupted run up to rounding.",
            path,
            "; ".join(rounding),
        )
    differing = [describe(name) for name in differing if name not in plan.ROUNDING]
    if differing:
        raise _OtherFacts(
            f"the checkpoint {path} was made with other batches or software "
            f"({'; '.join(differing)}), so the rest of the run would differ from that of the "
            "uninterrupted one: go on with the same (--per_device_train_batch_size times the sizes "
            f"of data and fsdp is the batch), or delete {path.parent} to begin again"
        )
