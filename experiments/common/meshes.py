"""Seeds and members of an ensemble, spread over the devices of a mesh."""

from typing import Any

import jax

from shatter import training
from shatter.cli.common.binary import UsageError

AXES = ("seed", "member")
_OF_MEMBERS = {"members", "anchors", "member_weights"}
"""Fields of `training.InteractionState` and its store whose first axis is that of the members."""


def open_mesh(text: str, *, num_seeds: int, num_members: int) -> jax.sharding.Mesh | None:
    """Returns the mesh that a flag describes.

    Args:
      text: the value of `--mesh`, for example "seed=4,member=2"; empty = one device.
      num_seeds: the seeds of the run.
      num_members: the members of the ensemble.

    Returns:
      The mesh; None = one device.

    Raises:
      UsageError: if the text is no mesh, there are fewer devices, or a size divides its number not.
    """
    if not text:
        return None
    try:
        sizes = training.mesh_sizes(text, AXES)
        mesh = training.make_mesh(sizes)
    except ValueError as error:
        raise UsageError(f"--mesh: {error}") from error
    for name, number in (("seed", num_seeds), ("member", num_members)):
        if number % sizes.get(name, 1):
            raise UsageError(
                f"--mesh={text}: {name}={sizes[name]} must divide --num_{name}s, found {number}"
            )
    return mesh


def shardings(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Returns where the state of a run lies: seeds first, then the members where they have an axis.

    Members whose number the mesh's does not divide, as one policy, are kept whole on every device.

    Args:
      mesh: the mesh.
      tree: arrays, `[S]` on every leaf, or their shapes.

    Returns:
      A tree of shardings.
    """

    def axes(path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        of_members = len(shape) > 1 and not _OF_MEMBERS.isdisjoint(path.split("/"))
        of_members = of_members and shape[1] % training.axis_size(mesh, "member") == 0
        first = ("seed", "member") if of_members else ("seed",)
        return (*first, *[None] * (len(shape) - len(first)))

    return training.shardings_of(mesh, tree, axes)
