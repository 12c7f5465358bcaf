"""Meshes of devices from a text such as "data=2,fsdp=4", and the places of arrays on them.

The arrays are placed by jax's own shardings, and the compiler inserts the communication. A program
is therefore the same on one device and on many, up to the rounding of its sums.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("seed", "member", "data", "fsdp", "tensor")
"""The axes that a mesh can have, the slowest first, so that the devices of the last one are the
nearest to each other: seeds; members of an ensemble; data (rows of a batch, parameters whole); fsdp
(rows of a batch, and parameters in parts); tensor (products in parts)."""

ROW_AXES = ("data", "fsdp")
"""The axes that share the rows of a batch."""

Axes = str | tuple[str, ...] | None
"""The axis or the axes of a mesh that share a dimension; None = it stays whole."""

Rule = Callable[[str, tuple[int, ...]], tuple[Axes, ...]]
"""`(path, shape) -> axes`, one entry a dimension. The path is made of the keys from the root of a
tree to an array, joined by slashes."""


def mesh_sizes(text: str, allowed: Sequence[str] = AXES) -> dict[str, int]:
    """Reads the sizes of a mesh.

    Args:
      text: for example "data=2,fsdp=4".
      allowed: the axes that may occur.

    Returns:
      The sizes by axis, in the order of `AXES`.

    Raises:
      ValueError: if the text has another form, an unknown axis, an axis twice or a size below 1.
    """
    example = ",".join(f"{name}=2" for name in allowed[:2])
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in allowed:
            raise ValueError(
                f"expected axes among {', '.join(allowed)} with their sizes, such as {example}, "
                f"found {part.strip()!r} in {text!r}"
            )
        if name in found:
            raise ValueError(f"expected every axis once, found {name} twice in {text!r}")
        if not (size.isascii() and size.isdigit()) or int(size) < 1:
            raise ValueError(
                f"expected a whole number of at least 1 as the size of {name}, found {size!r} in "
                f"{text!r}"
            )
        found[name] = int(size)
    return {name: found[name] for name in AXES if name in found}


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of the first devices.

    Args:
      sizes: the sizes by axis, as `mesh_sizes` returns them.
      devices: the devices that there are; None = those of all processes.

    Returns:
      The mesh. Its axes are of the kind "auto": the compiler spreads what follows from the places
      of a program's inputs.

    Raises:
      ValueError: if the mesh has more devices than there are, or leaves out those of a process.
    """
    devices = jax.devices() if devices is None else devices
    num = math.prod(sizes.values())
    described = ",".join(f"{name}={size}" for name, size in sizes.items())
    if num > len(devices):
        raise ValueError(
            f"the mesh {described} has {num} devices, and there are {len(devices)} of the kind "
            f"{devices[0].platform}"
        )
    processes = {device.process_index for device in devices}
    if processes != {device.process_index for device in devices[:num]}:
        raise ValueError(
            f"the mesh {described} has {num} devices, which leaves out some of the "
            f"{len(processes)} processes: expected the {len(devices)} devices of all of them"
        )
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(shape, tuple(sizes), axis_types=kinds, devices=list(devices[:num]))


def axis_size(mesh: Mesh, *names: str) -> int:
    """Returns how many devices axes have together.

    Args:
      mesh: the mesh.
      *names: the axes; one that the mesh lacks has size 1.

    Returns:
      The product of their sizes.
    """
    return math.prod(mesh.shape.get(name, 1) for name in names)


def place(mesh: Mesh, *dimensions: Axes) -> NamedSharding:
    """Returns the sharding that spreads leading dimensions over axes of a mesh.

    Args:
      mesh: the mesh.
      *dimensions: the axes of each dimension; those that the mesh lacks are left out. Later
        dimensions stay whole.

    Returns:
      The sharding.
    """
    return NamedSharding(
        mesh, PartitionSpec(*(_present(mesh, axes) or None for axes in dimensions))
    )


def shardings_of(mesh: Mesh, tree: Any, rule: Rule) -> Any:
    """Returns the sharding of every array in a tree.

    A dimension that its axes do not divide stays whole.

    Args:
      mesh: the mesh.
      tree: arrays, or their shapes as `jax.eval_shape` gives them.
      rule: the axes of each array. The paths end with the names of parameters wherever these lie,
        so that the moments of an optimiser are spread as its parameters are.

    Returns:
      A tree of the same structure.
    """

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        each = zip(rule(name, leaf.shape), leaf.shape, strict=True)
        divides = lambda axes, size: size % axis_size(mesh, *_present(mesh, axes)) == 0
        return place(mesh, *(axes if divides(axes, size) else None for axes, size in each))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def _present(mesh: Mesh, axes: Axes) -> tuple[str, ...]:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(name for name in names if name in mesh.shape)


def rows_of_process(mesh: Mesh, num_rows: int) -> tuple[int, int]:
    """Returns which part of the rows of a batch the devices of this process hold.

    Args:
      mesh: the mesh.
      num_rows: the rows of the whole batch, a multiple of the devices that share them.

    Returns:
      The number of the part, from 0, and the number of equal parts. Processes whose devices share
      one axis "tensor" have the same part.

    Raises:
      ValueError: if the rows of this process do not follow each other.
    """
    places = place(mesh, ROW_AXES).addressable_devices_indices_map((num_rows,))
    held = np.unique([np.arange(num_rows)[rows] for rows in places.values()])
    count = num_rows // len(held)
    if num_rows % len(held) or held[-1] - held[0] != len(held) - 1 or held[0] % len(held):
        raise ValueError(
            f"expected the devices of a process to hold one part of the {num_rows} rows of a "
            f"batch, found the rows {held.tolist()}: let the axes data and fsdp together be a "
            "multiple or a divisor of the number of processes"
        )
    return int(held[0]) // len(held), count


def put(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process holds whole, or that lie on the same devices already.

    Args:
      tree: arrays, the same in every process.
      shardings: their shardings, or one for all.

    Returns:
      The arrays on the devices of the mesh; each process sends its own parts.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_put_own_parts, tree, shardings)


def _put_own_parts(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def put_rows(mesh: Mesh, tree: Any, num_rows: int) -> Any:
    """Joins the rows that each process holds to whole batches.

    Args:
      mesh: the mesh.
      tree: arrays whose first axis is this process's part of the rows, as `rows_of_process` says.
      num_rows: the rows of the whole batch.

    Returns:
      The batches, whose rows the axes data and fsdp share.
    """
    sharding = place(mesh, ROW_AXES)
    join = lambda leaf: jax.make_array_from_process_local_data(
        sharding, np.asarray(leaf), (num_rows, *np.shape(leaf)[1:])
    )
    return jax.tree.map(join, tree)
