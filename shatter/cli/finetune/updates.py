"""Updates of the model, each from its batches on the host."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from shatter import data, training
from shatter.cli.finetune import batches, learning, optimizer, places, plan
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.learning import Frozen
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.cli.finetune.task import Task
from shatter.types import Key


class Measured(NamedTuple):
    """The metrics of an update.

    Attributes:
      metrics: those of each batch, still on the devices.
      weight: the weight of all answers of the update.
      num_tokens: the number of tokens of its documents, without padding.
    """

    metrics: list[Any]
    weight: float
    num_tokens: int


Update = Callable[[training.TrainState, Sequence[data.Batch]], tuple[training.TrainState, Measured]]


def make_update(
    config: Config, task: Task, refs: np.ndarray, frozen: Frozen, num_steps: int
) -> tuple[training.TrainState, Update]:
    """Makes the state before the first step, and the function that updates it.

    Args:
      config: the config.
      task: the model and the comparisons.
      refs: log-probs of the training rows under the reference, `[rows, K]`, nats.
      frozen: what a step reads and does not train.
      num_steps: steps of the whole run.

    Returns:
      The state, and `(state, batches) -> (state, measured)`, which donates the state's buffers.
    """
    mesh, size = places.mesh_of(config), plan.batch_size(config)
    learner = compile_learner(program_config(config), without_arrays(task.model), num_steps, mesh)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    start = places.put_params(config, learning.start(config, task.model, init_key))
    state = learner.init(start, places.put_everywhere(config, train_key))
    if frozen.samples is not None:
        frozen = frozen._replace(samples=places.put_everywhere(config, frozen.samples))

    def update(
        state: training.TrainState, parts: Sequence[data.Batch]
    ) -> tuple[training.TrainState, Measured]:
        total = sum(batches.total_weight(batch, task.train) for batch in parts)
        measured = []
        for number, batch in enumerate(parts):
            arrays = batches.step_batch(batch, refs, task.train, total, number)
            state, metrics = learner.step(state, frozen, training.put_rows(mesh, arrays, size))
            measured.append(metrics)
        num_tokens = sum(batches.count_tokens(batch, task.train) for batch in parts)
        return state, Measured(measured, total, num_tokens)

    return state, update


@functools.cache
def compile_learner(
    config: Config, model: Pretrained, num_steps: int, mesh: jax.sharding.Mesh
) -> training.Learner:
    """Returns the learner of a run, compiled; a step donates the state's buffers.

    The moments of the optimiser lie where its parameters do, from the first step to the last.
    """
    learner = training.learner(
        learning.make_objective(config, model),
        optimizer.make_optimizer(config, optimizer.make_schedule(config, num_steps)),
        num_batches=config.gradient_accumulation_steps,
    )
    return on_devices(learner, model, mesh)


def on_devices(
    learner: training.Learner, model: Pretrained, mesh: jax.sharding.Mesh
) -> training.Learner:
    """Returns a learner, compiled, whose parameters and moments stay where they are.

    Args:
      learner: the learner.
      model: the pretrained model, for the compiler's options.
      mesh: the devices.

    Returns:
      The learner; a step donates the state's buffers.
    """

    def init(params: Any, key: Key) -> training.TrainState:
        return places.pin_params(mesh, learner.init(params, key))

    def step(state: training.TrainState, frozen: Any, batch: Any) -> tuple[Any, Any]:
        state, metrics = learner.step(state, frozen, batch)
        return places.pin_params(mesh, state), metrics

    compiled = partial(jax.jit, compiler_options=compiler_options(model))
    return training.Learner(compiled(init), compiled(step, donate_argnums=0))
