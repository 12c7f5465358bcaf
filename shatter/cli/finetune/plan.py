"""Which comparisons make each batch, and how many steps that takes."""

import hashlib
from importlib import metadata
from typing import NamedTuple

import numpy as np

import shatter
from shatter import data
from shatter.cli.common.checkpoints import software
from shatter.cli.finetune import places
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.task import Task

Plan = list[tuple[int, np.ndarray]]
"""The batches of an epoch: the length to pad each to, and its rows; -1 fills a batch up."""


class Length(NamedTuple):
    """The length of a run.

    Attributes:
      num_steps: steps of the optimiser.
      num_batches: batches of all steps together.
      epoch_batches: batches of one pass over the data.
      step_batches: batches of one step; the last step may have fewer.
    """

    num_steps: int
    num_batches: int
    epoch_batches: int
    step_batches: int

    def batches_until(self, step: int) -> int:
        """Returns the number of batches of the first steps."""
        return min(step * self.step_batches, self.num_batches)

    def epoch(self, step: int) -> float:
        """Returns how many passes over the data the first steps make."""
        return self.batches_until(step) / self.epoch_batches


def batch_size(config: Config) -> int:
    """Returns the number of comparisons of a batch, over all devices."""
    return config.per_device_train_batch_size * places.num_shards(config)


def first_epoch(config: Config, encoded: list[data.Encoded]) -> Plan:
    """Returns the batches of the first pass over the data."""
    return data.plan_batches(
        [row.length for row in encoded],
        batch_size=batch_size(config),
        seed=config.seed,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )


def run_length(config: Config, task: Task) -> Length:
    """Returns the length of the whole run: that of its epochs, or of `max_steps`."""
    epoch_batches = len(first_epoch(config, task.train.encoded))
    step_batches = config.gradient_accumulation_steps
    if config.max_steps > 0:
        num_batches = config.max_steps * step_batches
    else:
        num_batches = max(1, round(config.num_train_epochs * epoch_batches))
    return Length(-(-num_batches // step_batches), num_batches, epoch_batches, step_batches)


ROUNDING = ("devices", "mesh", "processes")
"""Facts that change how sums are rounded, and neither the order of the data nor the mathematics."""


def plan_facts(config: Config, task: Task) -> dict[str, str]:
    """Returns what the bits of a run depend on beside its config, weights and data.

    Args:
      config: the config.
      task: the model and the comparisons.

    Returns:
      By name: the mesh and its devices, the number of processes, versions of libraries, and a
      digest of the rows and lengths of the first epoch's batches.
    """
    mesh = places.mesh_of(config)
    kinds = sorted(device.device_kind for device in mesh.devices.flat)
    digest = hashlib.sha256()
    for length, rows in first_epoch(config, task.train.encoded):
        digest.update(length.to_bytes(8, "little") + rows.tobytes())
    versions = {"optax": metadata.version("optax"), "shatter": shatter.__version__}
    return {
        "devices": f"{len(kinds)}: {', '.join(dict.fromkeys(kinds))}",
        "mesh": places.describe(mesh),
        "batches": digest.hexdigest(),
        **{name: str(value) for name, value in (software() | versions).items()},
    }
