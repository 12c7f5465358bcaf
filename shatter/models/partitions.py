"""How the parameters of every family are cut into parts, one for each device of a mesh.

All families have the parameters of one forward pass (`families.py` translates their names), so one
table serves them all. Its two words are axes of a mesh. Devices along "tensor" share the products:
columns of what enters attention and the feed-forward part, and rows of what leaves them; one sum
after each part of a block joins them (Shoeybi et al., Megatron-LM,
https://arxiv.org/abs/1909.08053). Devices along "fsdp" hold the other dimension in parts and gather
it where a block needs it (Rajbhandari et al., ZeRO, https://arxiv.org/abs/1910.02054). Both share
the vocabulary, so that no device holds all logits of a token.
"""

import math

import jax
from jax.sharding import PartitionSpec

from shatter.types import Array

Axes = str | tuple[str, ...] | None
"""The axis or the axes of a mesh that share a dimension; None = it stays whole."""

_VOCABULARY = ("tensor", "fsdp")
_AXES: dict[str, tuple[Axes, ...]] = {
    "token_embedding/embedding": (_VOCABULARY, None),
    "position_embedding/embedding": (None, "fsdp"),
    "blocks/qkv/kernel": (None, "fsdp", "tensor", None),
    "blocks/attention_out/kernel": (None, "tensor", None, "fsdp"),
    "blocks/mlp_in/kernel": (None, "fsdp", "tensor"),
    "blocks/mlp_out/kernel": (None, "tensor", "fsdp"),
    "head/kernel": (None, _VOCABULARY),
}
_GATED = {"blocks/mlp_in/kernel": (None, "fsdp", None, "tensor")}  # gate and up on the third axis


def partition(path: str, shape: tuple[int, ...]) -> tuple[Axes, ...]:
    """Returns the axes of a mesh that share the dimensions of a parameter.

    Norms, biases and adapters are small and stay whole.

    Args:
      path: the keys from the root of a tree to the parameter, joined by slashes; only the end
        counts, so that the moments of an optimiser are cut as its parameters are.
      shape: the shape of the parameter, stacked over layers.

    Returns:
      For each dimension "fsdp", "tensor", both or None.
    """
    keys = path.split("/")
    name = "/".join(keys[-3:] if keys[-3:-2] == ["blocks"] else keys[-2:])
    for table in (_AXES, _GATED):
        if name in table and len(table[name]) == len(shape):
            return table[name]
    return (None,) * len(shape)


def spread_rows(x: Array) -> Array:
    """Keeps the first axis of an array in parts over the axes "data" and "fsdp" of the mesh in use.

    The compiler would otherwise be free to cut activations as the parameters are cut, along the
    features, and then to sum whole activations over all devices. Without a mesh (`jax.set_mesh`),
    or where the axes do not divide the rows, nothing changes.

    Args:
      x: `[rows, ...]`.

    Returns:
      The array.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
