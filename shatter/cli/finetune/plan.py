"""Which comparisons make each batch, on which devices, and what a resumed run must share."""

import hashlib
from importlib import metadata
from typing import Any

import jax
import numpy as np

from shatter import data
from shatter.cli.common.checkpoints import software
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.task import Task

Plan = list[tuple[int, np.ndarray]]
"""The batches of an epoch: a length to pad to, and the rows; -1 fills a batch up."""


def devices(config: Config) -> list[jax.Device]:
    """The devices that share every batch."""
    return jax.devices()[: config.num_devices]


def spread(config: Config, value: Any, *, everywhere: bool = False) -> Any:
    """Puts arrays on the devices: a part of their rows on each, or all of them everywhere."""
    mesh = jax.sharding.Mesh(np.asarray(devices(config)), ("data",))
    axes = jax.sharding.PartitionSpec() if everywhere else jax.sharding.PartitionSpec("data")
    return jax.device_put(value, jax.sharding.NamedSharding(mesh, axes))


def batch_size(config: Config) -> int:
    """Comparisons of a batch, over all devices."""
    return config.per_device_train_batch_size * len(devices(config))


def first_epoch(config: Config, encoded: list[data.Encoded]) -> Plan:
    """The batches of the first pass over the data."""
    return data.plan_batches(
        [row.length for row in encoded],
        batch_size=batch_size(config),
        seed=config.seed,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )


def batches_an_epoch(config: Config, task: Task) -> int:
    """Batches of a pass over the data."""
    return len(first_epoch(config, task.train.encoded))


def num_batches(config: Config, task: Task) -> int:
    """Batches of the whole run: those of its epochs, or of its steps."""
    if config.max_steps > 0:
        return config.max_steps * config.gradient_accumulation_steps
    return max(1, round(config.num_train_epochs * batches_an_epoch(config, task)))


def num_steps(config: Config, task: Task) -> int:
    """Steps of the optimiser of the whole run; the last may have fewer batches than the others."""
    return -(-num_batches(config, task) // config.gradient_accumulation_steps)


def plan_facts(config: Config, task: Task) -> dict[str, str]:
    """What the plan and the bits of a run depend on beside its config, weights and data.

    Args:
      config: the config.
      task: the model and the comparisons.

    Returns:
      By name: the devices that share a batch, processes, versions of libraries, and a digest of the
      rows and lengths of the first epoch's batches.
    """
    kinds = sorted(device.device_kind for device in devices(config))
    digest = hashlib.sha256()
    for length, rows in first_epoch(config, task.train.encoded):
        digest.update(length.to_bytes(8, "little") + rows.tobytes())
    versions = {name: metadata.version(name) for name in ("optax", "shatter")}
    return {
        "devices": f"{len(kinds)}: {', '.join(dict.fromkeys(kinds))}",
        "batches": digest.hexdigest(),
        **{name: str(value) for name, value in (software() | versions).items()},
    }
