"""One run: steps, metrics, evaluations, checkpoints, and the exact way back after a kill."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from shatter import data, training
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import checkpoints, history, learning, scoring
from shatter.cli.finetune.checkpoints import open_checkpoints as _checkpoints
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.divergences import make_divergences
from shatter.cli.finetune.history import Log as _Log
from shatter.cli.finetune.history import Record, Sums
from shatter.cli.finetune.learning import Frozen, Sampled, Trainable
from shatter.cli.finetune.plan import (
    batch_size,
    batches_an_epoch,
    num_batches,
    num_steps,
    plan_facts,
    spread,
)
from shatter.cli.finetune.task import Task


class Result(NamedTuple):
    """What a run ends with.

    Attributes:
      trainable: what was trained, after the last step.
      history: the rows of the metrics, in order.
      seconds: what the steps of this process took, compilation included.
      tokens: how many tokens those steps read.
    """

    trainable: Trainable
    history: list[Record]
    seconds: float
    tokens: int


class _Loop(NamedTuple):
    """Where a run stands between two updates; `on_device` are updates not yet in `sums`."""

    step: int
    tokens: int
    sums: Sums
    on_device: list[tuple[list[Any], float]]


def unique_prompts(task: Task) -> list[np.ndarray]:
    """The different prompts of the training data, in order."""
    return list({row.prompt.tobytes(): row.prompt for row in task.train.encoded}.values())


def train(
    config: Config,
    task: Task,
    folder: Path,
    *,
    progress: Callable[[str, int], None] = lambda message, steps: None,
) -> Result:
    """Trains, or goes on from the newest sound checkpoint.

    A checkpoint holds the learner's state, the iterator's and the metrics since the last row, so
    that a resumed run is the uninterrupted one to the bit (on a CPU). A save that is interrupted
    does not harm the one before.

    Args:
      config: the config.
      task: the model and the comparisons.
      folder: the run folder.
      progress: called with a message and the steps done since the last call.

    Returns:
      The result.

    Raises:
      UsageError: if the loss or the gradient is not finite, no checkpoint is sound, or one was made
        by another plan.
    """
    total, facts = num_steps(config, task), plan_facts(config, task)
    accumulation, an_epoch = config.gradient_accumulation_steps, batches_an_epoch(config, task)
    num_in_all = num_batches(config, task)
    judge, refs, frozen = _prepare(config, task, progress)
    schedule = learning.make_schedule(config, total)
    state, update = _make_update(config, task, refs, frozen, schedule)
    iterator = data.batches(
        task.train.encoded,
        batch_size=batch_size(config),
        seed=config.seed,
        max_length=config.max_length,
    )
    log = _Log(folder)
    batches_of = lambda step: min(step * accumulation, num_in_all)
    at_step = lambda step: {"step": step, "epoch": batches_of(step) / an_epoch}
    with _checkpoints(config, folder) as manager:
        loop = _Loop(0, 0, {}, [])
        if found := checkpoints.resume(config, manager, state, facts, log):
            state = found.state
            iterator.set_state(found.loop["iterator"])
            loop = _Loop(found.step, found.loop["tokens"], found.loop["sums"], [])
            progress(f"resumed after step {found.step}", found.step)
        else:
            progress("evaluating before training", 0)
            log.add(at_step(0) | judge(state.params))
        began, first = time.perf_counter(), loop
        while loop.step < total:
            num_left = num_in_all - batches_of(loop.step)
            batches = [next(iterator) for _ in range(min(accumulation, num_left))]
            batches += [data.blank(batches[-1])] * (accumulation - len(batches))
            state, metrics, weight = update(state, batches)
            loop = loop._replace(
                step=loop.step + 1,
                tokens=loop.tokens + sum(int(b.valid[b.ranks >= 0].sum()) for b in batches),
                on_device=[*loop.on_device, (metrics, weight)],
            )
            step, is_last = loop.step, loop.step == total
            due = lambda every, step=step: every > 0 and step % every == 0
            saving, logging = due(config.save_steps) and not is_last, due(config.logging_steps)
            if saving or logging or is_last:
                loop = _fetched(loop, accumulation)
            if logging or is_last:
                row = history.means(config, loop.sums)
                rate = {"learning_rate": float(schedule(step - 1)), "num_tokens": loop.tokens}
                log.add(at_step(step) | row | rate)
                speed = _speed(first, loop, time.perf_counter() - began, total)
                done = step - (step - 1) // config.logging_steps * config.logging_steps
                progress(f"loss {row['loss']:.4f}, {speed}" if "loss" in row else speed, done)
                loop = loop._replace(sums={})
            if due(config.eval_steps) and not is_last:
                log.add(at_step(step) | judge(state.params))
            if saving:
                rest = {"iterator": iterator.get_state(), "facts": facts}
                rest |= {"sums": loop.sums, "tokens": loop.tokens}
                checkpoints.save(manager, step, state, rest, log)
        seconds = time.perf_counter() - began
        progress("evaluating after training", 0)
        log.add(at_step(total) | judge(state.params))
    log.close()
    return Result(state.params, log.rows, seconds, loop.tokens - first.tokens)


def _make_update(
    config: Config, task: Task, refs: np.ndarray, frozen: Frozen, schedule: optax.Schedule
) -> tuple[training.TrainState, Callable[..., tuple[Any, list[Any], float]]]:
    """The state to begin with, and an update by its batches.

    It is `(state, batches) -> (state, the batches' metrics, what all their answers weigh)`.
    """
    learner = training.learner(
        learning.make_objective(config, task.model),
        learning.make_optimizer(config, schedule),
        num_batches=config.gradient_accumulation_steps,
    )
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    begin = learner.init(learning.start(config, task.model, init_key), train_key)
    frozen = spread(config, frozen, everywhere=True)
    options = learning.compiler_options(task.model)
    step = jax.jit(learner.step, donate_argnums=0, compiler_options=options)

    def update(state: Any, batches: list[data.Batch]) -> tuple[Any, list[Any], float]:
        weights = [learning.answer_weights(batch, task.train).sum() for batch in batches]
        total, found = float(sum(weights)), []
        for part, batch in enumerate(batches):
            numbers = learning.numbers(batch, refs, task.train, total, part)
            state, metrics = step(state, frozen, spread(config, numbers))
            found.append(metrics)
        return state, found, total

    return spread(config, begin, everywhere=True), update


def _fetched(loop: _Loop, accumulation: int) -> _Loop:
    """The metrics on the device, added to the sums."""
    sums, first = loop.sums, (loop.step - len(loop.on_device)) * accumulation + 1
    for on_device, weight in loop.on_device:
        sums = history.add_update(sums, history.fetch(on_device, first), weight)
        first += accumulation
    return loop._replace(sums=sums, on_device=[])


def _speed(first: _Loop, now: _Loop, passed: float, total: int) -> str:
    left = passed * (total - now.step) / (now.step - first.step)
    return f"{(now.tokens - first.tokens) / passed:,.0f} tokens/s, {left / 60:.1f} min left"


def _prepare(
    config: Config, task: Task, progress: Callable[[str, int], None]
) -> tuple[Callable[[Trainable], Record], np.ndarray, Frozen]:
    """What every step and evaluation reads: a judge, the reference's log-probs, what is frozen."""
    model = task.model
    splits = {"train": task.train.encoded, **{k: s.encoded for k, s in task.held_out.items()}}
    if config.objective == "reward_model":  # not a language model in the end, so no reference
        refs = {name: scoring.no_reference(encoded) for name, encoded in splits.items()}
        frozen = Frozen(None if model.lora is None else model.params, None)
        return _judge(config, task, refs), refs["train"], frozen
    progress("scoring the data with the reference (kept for the next run)", 0)
    refs = scoring.reference_log_probs(config, model, splits)
    scoring.check_reference(config, model, task.train.encoded, refs["train"])
    progress("sampling from the reference", 0)
    distances, samples = _distances(config, task)
    reads = model.lora is not None or config.kl_weight > 0
    frozen = Frozen(model.params if reads else None, samples if config.kl_weight else None)
    judge = _judge(config, task, refs)
    return lambda trainable: judge(trainable) | distances(trainable), refs["train"], frozen


def _judge(
    config: Config, task: Task, refs: dict[str, np.ndarray]
) -> Callable[[Trainable], Record]:
    """Measures on the held-out comparisons."""
    model, utilities = task.model, scoring.make_utilities(config, task.model)

    def judge(trainable: Trainable) -> Record:
        found: Record = {}
        pretrained = None if model.lora is None else model.params
        for name, split in task.held_out.items():
            values = utilities(trainable, pretrained, split.encoded, refs[name])
            if not np.isfinite(values).all():
                raise UsageError(
                    f"the model's scores of {name} are not finite: the run went astray; lower "
                    "--learning_rate, or go on from an earlier checkpoint with another"
                )
            scores = scoring.held_out_scores(split.encoded, values)
            if config.objective == "sft":
                scores |= scoring.demonstration_scores(split.encoded, values)
            found |= {f"eval_{name}/{measure}": value for measure, value in scores.items()}
        return found

    return judge


def _distances(config: Config, task: Task) -> tuple[Callable[[Trainable], Record], Sampled]:
    """How far a model is from the reference after prompts of the data, and samples of that."""
    model, prompts = task.model, unique_prompts(task)
    order = np.random.default_rng(config.seed).permutation(len(prompts))[: config.kl_samples]
    some = [prompts[n] for n in order]
    draw = learning.make_sampler(
        model, num_samples=-(-config.kl_samples // len(some)), max_length=config.kl_length
    )
    divergences = make_divergences(config, model)
    ref_key, own_key = jax.random.split(jax.random.key(config.seed))
    samples = draw(model.params, ref_key, some)

    def distances(trainable: Trainable) -> Record:
        params = learning.assemble(model, trainable, model.params)
        return divergences(params, samples, draw(params, own_key, some))

    return distances, samples
