"""Where the arrays of a run lie: on which devices of which mesh, whole or in parts."""

import math
from typing import Any

import jax

from shatter import models, training
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.config import MESH_AXES, Config
from shatter.types import Params


def mesh_of(config: Config) -> jax.sharding.Mesh:
    """Returns the mesh of a run, by default of the axis data over all devices.

    Raises:
      UsageError: if there are fewer devices, or a process would have none.
    """
    sizes = {"data": jax.device_count()}
    if config.mesh:
        sizes = training.mesh_sizes(config.mesh, MESH_AXES)
    try:
        return training.make_mesh(sizes)
    except ValueError as error:
        raise UsageError(f"--mesh: {error}") from error


def describe(mesh: jax.sharding.Mesh) -> str:
    """Returns a mesh as the flag that makes it, for example data=2,fsdp=4."""
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())


def num_shards(config: Config) -> int:
    """Returns how many parts of every batch are computed at the same time."""
    return training.axis_size(mesh_of(config), "data", "fsdp")


def check_mesh(config: Config, params: Params) -> None:
    """Raises an error if an axis of the mesh could hold no parameter in parts.

    Args:
      config: the config.
      params: the model's parameters.

    Raises:
      UsageError: naming the axis.
    """
    mesh = mesh_of(config)
    shardings = jax.tree.leaves(training.shardings_of(mesh, params, models.partition))
    shared = [axes for sharding in shardings for axes in sharding.spec if axes is not None]
    used = {name for axes in shared for name in ((axes,) if isinstance(axes, str) else axes)}
    for name in ("fsdp", "tensor"):
        if mesh.shape.get(name, 1) > 1 and name not in used:
            raise UsageError(
                f"--mesh={config.mesh}: {name}={mesh.shape[name]} divides no dimension of the "
                f"parameters of {config.model_name_or_path} that {name} shares: choose a divisor "
                "of its width, its feed-forward width or its vocabulary"
            )


def count_bytes(config: Config, tree: Any) -> int:
    """Returns how many bytes of the parameters of a tree each device holds."""
    shardings = training.shardings_of(mesh_of(config), tree, models.partition)
    sizes = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def put_params(config: Config, tree: Any) -> Any:
    """Puts parameters, or what contains them, on the devices, each in parts as its axes say."""
    shardings = training.shardings_of(mesh_of(config), tree, models.partition)
    return training.put(tree, shardings)


def put_everywhere(config: Config, tree: Any) -> Any:
    """Puts arrays whole on every device."""
    return training.put(tree, training.place(mesh_of(config)))


def pin_params(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Asks the compiler to leave parameters, or what contains them, in their places."""
    shardings = training.shardings_of(mesh, tree, models.partition)
    return jax.lax.with_sharding_constraint(tree, shardings)
