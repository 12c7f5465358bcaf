"""The training loop of a run: steps, metrics, evaluations and checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optax

from shatter import data, training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints
from shatter.cli.common.people import Person
from shatter.cli.finetune import (
    checkpoints,
    evaluation,
    history,
    online,
    online_evaluation,
    places,
    plan,
)
from shatter.cli.finetune.config import ONLINE, Config
from shatter.cli.finetune.history import Log as _Log
from shatter.cli.finetune.history import Record, Sums
from shatter.cli.finetune.learning import Trainable
from shatter.cli.finetune.optimizer import make_schedule
from shatter.cli.finetune.task import Task
from shatter.cli.finetune.updates import Measured, Update, make_update

Progress = Callable[[str, int], None]
"""Called with a message and the number of steps done since the last call."""


class Result(NamedTuple):
    """The result of a run.

    Attributes:
      trainable: what was trained, after the last step.
      history: the rows of the metrics, in order.
      seconds: the time that the steps of this process took, compilation included.
      tokens: the number of tokens that those steps read.
      people: how well each person's held-out answers are predicted at the end, by name.
    """

    trainable: Trainable
    history: list[Record]
    seconds: float
    tokens: int
    people: dict[str, list[Person]]


class _Run(NamedTuple):
    """The parts of a run.

    Attributes:
      config: the config.
      length: its length.
      evaluate: measures a model.
      update: makes a step.
      schedule: the learning rate by step.
      task: the model and the comparisons.
      batches: the iterator over this process's part of the batches.
      log: the metrics on disk.
      saved: the checkpoints.
      facts: what a resumed run must share, from `plan.plan_facts`.
      progress: shows progress.
    """

    config: Config
    length: plan.Length
    evaluate: evaluation.Evaluate
    update: Update
    schedule: optax.Schedule
    task: Task
    batches: Any
    log: _Log
    saved: Checkpoints
    facts: dict[str, str]
    progress: Progress


class _Position(NamedTuple):
    """The position of a run between two steps.

    Attributes:
      step: the number of steps made.
      tokens: the number of tokens read.
      state: the learner's state.
      sums: metrics summed since the last row of the log.
      pending: metrics of the latest updates, which are not in `sums` yet because fetching them from
        the devices would interrupt the training.
    """

    step: int
    tokens: int
    state: training.TrainState
    sums: Sums
    pending: list[Measured]


class _Start(NamedTuple):
    """The step, tokens and time (seconds) at which the steps of this process begin."""

    step: int
    tokens: int
    time: float


def train(
    config: Config,
    task: Task,
    folder: Path,
    *,
    progress: Progress = lambda message, steps: None,
) -> Result:
    """Trains from the beginning, or from the newest undamaged checkpoint.

    A checkpoint holds the states of the learner and of the data iterator and the metrics since the
    last row, so that a resumed run ends with the same bits as the uninterrupted one (on a CPU). A
    save that is interrupted does not harm the checkpoint before it.

    Args:
      config: the config.
      task: the model and the comparisons.
      folder: the run folder.
      progress: called with a message and the number of steps done since the last call.

    Returns:
      The result.

    Raises:
      UsageError: if the loss or the gradient is not finite, all checkpoints are damaged, or one was
        made with other batches or software.
    """
    length, facts = plan.run_length(config, task), plan.plan_facts(config, task)
    evaluate, state, update = _prepare(config, task, length.num_steps, progress)
    size = plan.batch_size(config)
    part, num_parts = training.rows_of_process(places.mesh_of(config), size)
    batches = data.batches(
        task.train.encoded,
        batch_size=size,
        seed=config.seed,
        max_length=config.max_length,
        process_index=part,
        process_count=num_parts,
    )
    log = _Log(folder)
    with checkpoints.open_checkpoints(config, folder) as saved:
        run = _Run(
            config=config,
            length=length,
            evaluate=evaluate,
            update=update,
            schedule=_schedule(config, length.num_steps),
            task=task,
            batches=batches,
            log=log,
            saved=saved,
            facts=facts,
            progress=progress,
        )
        position = _resume_or_begin(run, state)
        start = _Start(position.step, position.tokens, time.perf_counter())
        while position.step < length.num_steps:
            with _kept_on_failure(run, position):
                after = _take_step(run, position)
            position = _report(run, after, start)
            is_last = position.step == length.num_steps
            if _is_due(config.eval_steps, position.step) and not is_last:
                with _kept_on_failure(run, position, evaluate=True):
                    _log_evaluation(run, position)
            _save_if_due(run, position)
        seconds = time.perf_counter() - start.time
        progress("evaluating after training", 0)
        with _kept_on_failure(run, position):
            people = _log_evaluation(run, position)
    log.close()
    tokens = position.tokens - start.tokens
    return Result(position.state.params, log.rows, seconds, tokens, people)


def _prepare(
    config: Config, task: Task, num_steps: int, progress: Progress
) -> tuple[evaluation.Evaluate, training.TrainState, Update]:
    """Returns what measures a model, the state before the first step, and what makes a step."""
    if config.objective in ONLINE:
        state, update = online.make_update(config, task, num_steps)
        return online_evaluation.make_evaluate(config, task), state, update
    prepared = evaluation.prepare(config, task, progress)
    refs, frozen = prepared.ref_log_probs, prepared.frozen
    state, update = make_update(config, task, refs, frozen, num_steps)
    return prepared.evaluate, state, update


def _schedule(config: Config, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of a step's last update; only reinforcement makes several."""
    num = config.num_iterations
    of_update = make_schedule(config, num_steps * num)
    return lambda step: of_update(step * num + num - 1)


def _resume_or_begin(run: _Run, state: training.TrainState) -> _Position:
    """Restores a checkpoint, or evaluates the untrained model if there is none."""
    resumed = checkpoints.resume(run.config, run.saved, state, run.facts, run.log)
    if resumed is None:
        run.progress("evaluating before training", 0)
        position = _Position(0, 0, state, {}, [])
        _log_evaluation(run, position)
        return position
    run.batches.set_state(resumed.loop["iterator"])
    run.progress(f"resumed after step {resumed.step}", resumed.step)
    tokens, sums = resumed.loop["tokens"], resumed.loop["sums"]
    position = _Position(resumed.step, tokens, resumed.state, sums, [])
    if resumed.loop.get("evaluate"):  # checkpoints of older versions have no such field
        with _kept_on_failure(run, position, evaluate=True):
            _log_evaluation(run, position)
    return position


def _take_step(run: _Run, position: _Position) -> _Position:
    """Reads the batches of a step and updates the model."""
    length = run.length
    num_left = length.num_batches - length.batches_until(position.step)
    batches = [next(run.batches) for _ in range(min(length.step_batches, num_left))]
    # The last step may have fewer batches; blank ones keep the compiled program.
    batches += [data.blank(batches[-1])] * (length.step_batches - len(batches))
    state, measured = run.update(position.state, batches)
    return position._replace(
        step=position.step + 1,
        tokens=position.tokens + measured.num_tokens,
        state=state,
        pending=[*position.pending, measured],
    )


def _report(run: _Run, position: _Position, start: _Start) -> _Position:
    """Writes the rows of the metrics that are due after a step, and shows progress."""
    config, step = run.config, position.step
    is_last = step == run.length.num_steps
    is_logged = is_last or _is_due(config.logging_steps, step)
    if is_logged or _is_due(config.save_steps, step):
        position = _fetch(run, position)
    if is_logged:
        row = history.means(config, position.sums)
        history.warn_of_collapse(run.log.rows, row)
        rate = {"learning_rate": float(run.schedule(step - 1)), "num_tokens": position.tokens}
        run.log.add(_at_step(run, step) | row | rate)
        speed = _speed(start, position, run.length.num_steps)
        num_new = step - (step - 1) // config.logging_steps * config.logging_steps
        shown = [f"{name} {row[name]:.4f}" for name in ("loss", "reward") if name in row]
        run.progress(", ".join([*shown, speed]), num_new)
        position = position._replace(sums={})
    return position


def _save_if_due(run: _Run, position: _Position) -> None:
    """Saves a checkpoint if one is due; none after the last step, whose model is saved itself."""
    is_last = position.step == run.length.num_steps
    if is_last or not _is_due(run.config.save_steps, position.step):
        return
    _save(run, position, run.batches.get_state())


def _save(run: _Run, position: _Position, iterator: Any, *, evaluate: bool = False) -> None:
    """Saves a checkpoint, after whose restoration the model is evaluated first if asked for."""
    loop = {
        "iterator": iterator,
        "facts": run.facts,
        "sums": position.sums,
        "tokens": position.tokens,
        "evaluate": evaluate,
    }
    checkpoints.save(run.saved, position.step, position.state, loop, run.log)


@contextmanager
def _kept_on_failure(run: _Run, position: _Position, *, evaluate: bool = False) -> Iterator[None]:
    """Saves the steps that are finished if a reward fails, which may be the user's own function."""
    is_online = run.config.objective in ONLINE
    iterator = run.batches.get_state() if is_online else None
    try:
        yield
    except UsageError:
        if is_online and position.step > 0 and position.step not in run.saved.steps():
            _save(run, _fetch(run, position), iterator, evaluate=evaluate)
        raise


def _log_evaluation(run: _Run, position: _Position) -> dict[str, list[Person]]:
    """Evaluates the model, logs its measures, and returns those of each person."""
    found = run.evaluate(position.state.params)
    run.log.add(_at_step(run, position.step) | found.metrics)
    return found.people


def _fetch(run: _Run, position: _Position) -> _Position:
    """Fetches pending metrics from the devices and adds them to the sums."""
    step_batches = run.length.step_batches
    sums, number = position.sums, (position.step - len(position.pending)) * step_batches + 1
    for measured in position.pending:
        metrics = history.fetch(measured.metrics, number)
        sums = history.add_update(sums, metrics, measured.weight)
        number += step_batches
    return position._replace(sums=sums, pending=[])


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _at_step(run: _Run, step: int) -> Record:
    return {"step": step, "epoch": run.length.epoch(step)}


def _speed(start: _Start, position: _Position, num_steps: int) -> str:
    """Returns the speed of this process and the time that it still needs, for the progress bar."""
    seconds = time.perf_counter() - start.time
    left = seconds * (num_steps - position.step) / (position.step - start.step)
    tokens = position.tokens - start.tokens
    return f"{tokens / seconds:,.0f} tokens/s, {left / 60:.1f} min left"
