"""Updates of the model, each from its batches on the host."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from shatter import data, training
from shatter.cli.finetune import batches, learning, optimizer
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.learning import Frozen
from shatter.cli.finetune.plan import spread
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.cli.finetune.task import Task


class Measured(NamedTuple):
    """The metrics of an update.

    Attributes:
      metrics: those of each batch, still on the devices.
      weight: the weight of all answers of the update.
    """

    metrics: list[Any]
    weight: float


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
    learner = _learner(program_config(config), without_arrays(task.model), num_steps)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    start = learner.init(learning.start(config, task.model, init_key), train_key)
    frozen = spread(config, frozen, everywhere=True)

    def update(
        state: training.TrainState, parts: Sequence[data.Batch]
    ) -> tuple[training.TrainState, Measured]:
        total = float(sum(batches.answer_weights(batch, task.train).sum() for batch in parts))
        measured = []
        for number, batch in enumerate(parts):
            arrays = batches.step_batch(batch, refs, task.train, total, number)
            state, metrics = learner.step(state, frozen, spread(config, arrays))
            measured.append(metrics)
        return state, Measured(measured, total)

    return spread(config, start, everywhere=True), update


@functools.cache
def _learner(config: Config, model: Pretrained, num_steps: int) -> training.Learner:
    """Returns the learner of a run, whose step is compiled and donates the state's buffers."""
    learner = training.learner(
        learning.make_objective(config, model),
        optimizer.make_optimizer(config, optimizer.make_schedule(config, num_steps)),
        num_batches=config.gradient_accumulation_steps,
    )
    step = jax.jit(learner.step, donate_argnums=0, compiler_options=compiler_options(model))
    return learner._replace(step=step)
