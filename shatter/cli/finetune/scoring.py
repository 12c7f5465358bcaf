"""Scores of whole data sets, batch by batch: utilities of held-out responses."""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from shatter import data
from shatter.cli.common import processes
from shatter.cli.finetune.batches import StepBatch, step_batch
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.learning import Trainable, assemble, score
from shatter.cli.finetune.objectives import OBJECTIVES
from shatter.cli.finetune.places import num_shards
from shatter.cli.finetune.plan import Plan
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.types import Array, Params


def over_rows(
    encoded: Sequence[data.Encoded],
    plan: Plan,
    function: Callable[[StepBatch], Array],
    ref_log_probs: np.ndarray | None = None,
) -> np.ndarray:
    """Applies a function to the batches of a plan.

    Args:
      encoded: the rows.
      plan: their batches, which may leave rows out.
      function: `batch -> [B, K]`.
      ref_log_probs: log-probs under the reference, `[rows, K]`, nats; None = zeros.

    Returns:
      `[rows, K]`; 0 in empty slots and in rows that the plan leaves out.
    """
    num_slots = count_slots(encoded)
    result = np.zeros((len(encoded), num_slots), np.float32)
    ref = np.zeros_like(result) if ref_log_probs is None else ref_log_probs
    for length, rows in plan:
        batch = data.collate(encoded, rows, length=length, num_slots=num_slots)
        real = batch.row >= 0
        values = processes.fetch(function(step_batch(batch, ref)))
        result[batch.row[real]] = values[real]
    used = np.asarray([len(row.completions) for row in encoded])
    return np.where(np.arange(num_slots) < used[:, None], result, 0.0).astype(np.float32)


def count_slots(encoded: Sequence[data.Encoded]) -> int:
    """Returns K, the largest number of completions of a row."""
    return max(len(row.completions) for row in encoded)


def held_out_plan(config: Config, encoded: Sequence[data.Encoded]) -> Plan:
    """Returns the batches in which held-out rows are scored, always the same."""
    return data.plan_batches(
        [row.length for row in encoded],
        batch_size=config.per_device_eval_batch_size * num_shards(config),
        seed=0,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )


def make_utilities(config: Config, model: Pretrained) -> Callable[..., np.ndarray]:
    """Makes a function that computes the utilities of held-out responses.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, pretrained params or None, encoded, ref_log_probs) -> [rows, K]`, nats; it
      compiles one program per shape.
    """
    run = _program(program_config(config), without_arrays(model))

    def utilities(
        trainable: Trainable,
        pretrained: Params | None,
        encoded: Sequence[data.Encoded],
        ref_log_probs: np.ndarray,
    ) -> np.ndarray:
        function = lambda batch: run(trainable, pretrained, batch)
        return over_rows(encoded, held_out_plan(config, encoded), function, ref_log_probs)

    return utilities


@functools.cache
def _program(config: Config, model: Pretrained) -> Callable[..., Array]:
    """Compiles `(trainable, pretrained params or None, batch) -> utilities[B, K]`."""

    @partial(jax.jit, compiler_options=compiler_options(model))
    def run(trainable: Trainable, pretrained: Params | None, batch: StepBatch) -> Array:
        params = assemble(model, trainable, pretrained)
        scores = score(model, params, trainable.head, batch)
        return OBJECTIVES[config.objective].utilities(config, scores)

    return run
