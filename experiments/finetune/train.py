"""One run: steps, metrics, evaluations, checkpoints, and the exact way back after a kill."""

import json
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.binary import UsageError
from experiments.common.chunks import compiler_options
from experiments.finetune import learning, scoring
from experiments.finetune.config import Config
from experiments.finetune.learning import Frozen, Sampled, Trainable
from experiments.finetune.task import Task
from shatter import data, training

Record = dict[str, float]
"""One row of the metrics: `step`, `epoch` and what was measured."""


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


def devices(config: Config) -> list[jax.Device]:
    """The devices that share every batch."""
    return jax.devices()[: config.num_devices]


def batch_size(config: Config) -> int:
    """Comparisons of a batch, over all devices."""
    return config.per_device_train_batch_size * len(devices(config))


def batches_an_epoch(config: Config, task: Task) -> int:
    """Batches of a pass over the data."""
    plan = data.plan_batches(
        [row.length for row in task.train.encoded],
        batch_size=batch_size(config),
        seed=config.seed,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )
    return len(plan)


def num_steps(config: Config, task: Task) -> int:
    """Steps of the optimiser of the whole run."""
    if config.max_steps > 0:
        return config.max_steps
    batches = config.num_train_epochs * batches_an_epoch(config, task)
    return max(1, round(batches / config.gradient_accumulation_steps))


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
    """Trains, or goes on from the newest checkpoint.

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
      UsageError: if the loss or the gradient is not finite, or a checkpoint cannot be read.
    """
    total, accumulation = num_steps(config, task), config.gradient_accumulation_steps
    judge, refs, frozen = _prepare(config, task, progress)
    schedule = learning.make_schedule(config, total)
    learner = training.learner(
        learning.make_objective(config, task.model), learning.make_optimizer(config, schedule)
    )
    mesh = jax.sharding.Mesh(np.asarray(devices(config)), ("data",))
    spread = partial(jax.device_put, device=_sharding(mesh, "data"))
    everywhere = partial(jax.device_put, device=_sharding(mesh))

    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    state = everywhere(learner.init(learning.start(config, task.model, init_key), train_key))
    frozen = everywhere(frozen)
    step = jax.jit(learner.step, donate_argnums=0, compiler_options=compiler_options())
    iterator = data.batches(
        task.train.encoded,
        batch_size=batch_size(config),
        seed=config.seed,
        max_length=config.max_length,
    )
    an_epoch = batches_an_epoch(config, task)
    log = _Log(folder)
    pending: list[Record] = []
    began, done, tokens = time.perf_counter(), 0, 0
    with _checkpoints(config, folder) as manager:
        first = _step_to_resume(config, manager)
        if first is not None:
            state, loop = _restore(manager, first, state, folder)
            iterator.set_state(loop["iterator"])
            log.truncate(loop["rows"])
            pending, done, tokens = loop["pending"], first * accumulation, loop["tokens"]
            progress(f"resumed after step {first}", first)
        else:
            log.truncate(0)
            progress("evaluating before training", 0)
            log.add({"step": 0, "epoch": 0.0, **judge(state.params)})
            began = time.perf_counter()
        first_done, first_tokens, on_device = done, tokens, []
        while done < total * accumulation:
            batch = next(iterator)
            state, metrics = step(state, frozen, spread(learning.numbers(batch, refs, task.train)))
            on_device.append(metrics)
            done, tokens = done + 1, tokens + int(batch.valid[batch.ranks >= 0].sum())
            at, is_whole = done // accumulation, done % accumulation == 0
            due = lambda every, at=at, whole=is_whole: whole and (at % every == 0 or at == total)
            saving = due(config.save_steps) and at < total
            if saving or due(config.logging_steps):
                pending += _fetch(on_device, done)
                on_device = []
            if due(config.logging_steps):
                row = {k: float(np.mean([p[k] for p in pending])) for k in pending[0]}
                rate = {"learning_rate": float(schedule(at - 1)), "num_tokens": tokens}
                log.add({"step": at, "epoch": done / an_epoch, **row, **rate})
                passed = time.perf_counter() - began
                left = passed * (total * accumulation - done) / (done - first_done)
                speed = f"{(tokens - first_tokens) / passed:,.0f} tokens/s"
                progress(
                    f"loss {row['loss']:.4f}, {speed}, {left / 60:.1f} min left",
                    at - (at - 1) // config.logging_steps * config.logging_steps,
                )
                pending = []
            if config.eval_steps > 0 and due(config.eval_steps) and at < total:
                log.add({"step": at, "epoch": done / an_epoch, **judge(state.params)})
            if saving:
                loop = {"iterator": iterator.get_state(), "rows": len(log.rows)}
                loop |= {"pending": pending, "tokens": tokens}
                args = {"state": ocp.args.StandardSave(state), "loop": ocp.args.JsonSave(loop)}
                manager.save(at, args=ocp.args.Composite(**args))
        seconds = time.perf_counter() - began
        progress("evaluating after training", 0)
        log.add({"step": total, "epoch": done / an_epoch, **judge(state.params)})
    log.close()
    return Result(state.params, log.rows, seconds, tokens - first_tokens)


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
            scores = scoring.held_out_scores(split.encoded, values)
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
    divergences = learning.make_divergences(config, model)
    ref_key, own_key = jax.random.split(jax.random.key(config.seed))
    samples = draw(model.params, ref_key, some)

    def distances(trainable: Trainable) -> Record:
        params = learning.assemble(model, trainable, model.params)
        return divergences(params, samples, draw(params, own_key, some))

    return distances, samples


def _fetch(on_device: list[dict[str, jax.Array]], done: int) -> list[Record]:
    """Metrics of the last batches as numbers; refuses the first that is not finite, by name."""
    fetched = [{k: float(v) for k, v in m.items()} for m in jax.device_get(on_device)]
    for number, metrics in enumerate(fetched, start=done - len(fetched) + 1):
        for name in sorted(metrics, key=lambda name: name != "loss"):
            value = metrics[name]
            if not np.isfinite(value):
                raise UsageError(
                    f"{name} is {value} at batch {number}: the run went astray; lower "
                    "--learning_rate, or go on from the last checkpoint with another"
                )
    return fetched


class _Log:
    """metrics.jsonl: a row a line, on disk before the next step; and the rows so far."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._board = _tensorboard(folder)
        self.rows: list[Record] = []

    def truncate(self, num_rows: int) -> None:
        """Keeps the first rows of an earlier process."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        if len(lines) < num_rows:
            raise UsageError(
                f"{self._path} has {len(lines)} rows and its checkpoint was made after {num_rows}: "
                "delete the folder to begin again"
            )
        self.rows = [json.loads(line) for line in lines[:num_rows]]
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in lines[:num_rows]))
        os.replace(temporary, self._path)

    def add(self, row: Record) -> None:
        """Appends a row."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Ends the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    """A writer where tensorboardX is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def csv_rows(config: Config, history: Iterable[Record]) -> Iterable[tuple]:
    """The history as rows of `run_folder.CSV_COLUMNS`."""
    for row in history:
        for name, value in row.items():
            if name != "step":
                start = (config.dataset_name, config.objective, "", config.seed)
                yield *start, int(row["step"]), name, f"{value:.8g}"


def _sharding(mesh: jax.sharding.Mesh, *axes: str) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _checkpoints(config: Config, folder: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        (folder / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=config.save_total_limit, enable_async_checkpointing=False
        ),
        item_names=("state", "loop"),
    )


def _step_to_resume(config: Config, manager: ocp.CheckpointManager) -> int | None:
    """The checkpoint to go on from; later ones are deleted."""
    steps = sorted(manager.all_steps())
    if config.resume_from_checkpoint == "auto":
        return steps[-1] if steps else None
    if config.resume_from_checkpoint == "never":
        return None
    if config.resume_from_checkpoint not in steps:
        raise UsageError(
            f"--resume_from_checkpoint={config.resume_from_checkpoint}: there are checkpoints of "
            f"the steps {steps}"
        )
    for step in steps:
        if step > config.resume_from_checkpoint:
            manager.delete(step)
    return config.resume_from_checkpoint


def _restore(
    manager: ocp.CheckpointManager, step: int, state: Any, folder: Path
) -> tuple[Any, dict[str, Any]]:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    args = {"state": ocp.args.StandardRestore(abstract), "loop": ocp.args.JsonRestore()}
    try:
        found = manager.restore(step, args=ocp.args.Composite(**args))
    except Exception as error:
        raise UsageError(
            f"the checkpoint of step {step} in {folder / 'checkpoints'} cannot be read ({error}): "
            "delete it to go on from an older one, or the folder to begin again"
        ) from error
    return found["state"], found["loop"]
