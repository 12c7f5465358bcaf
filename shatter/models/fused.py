"""The layout of fused kernels: several projections of one input that are computed as one.

A fused kernel is `[inputs, entries, size]`. Its parts follow each other along the axis `entries`:

- "qkv": query (an entry a head), key and value (an entry a key-value head); size is the head size;
- "mlp_in" of a gated feed-forward part: gate, up (an entry each); size is the hidden width.

The model, the adapters and the files of the families all read the layout here.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array

Parts = dict[str, int]
"""The parts of a fused kernel in their order, each with its number of entries."""


class Part(NamedTuple):
    """Where a projection lies that has no kernel of its own.

    Attributes:
      kernel: the name of the fused kernel.
      entries: the projection's entries, on the second last axis of the kernel and of its bias.
    """

    kernel: str
    entries: slice


def fused_kernels(config: TransformerConfig) -> dict[str, Parts]:
    """Returns the parts of every fused kernel of a transformer, by the name of the kernel.

    Args:
      config: the configuration of the transformer.
    """
    return _fused_kernels(config.num_heads, config.kv_heads, config.gated)


def fused_kernels_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Parts]:
    """Returns the same as `fused_kernels`, of a transformer that is known by its parameters alone.

    Args:
      shapes: the shapes of the kernels "qkv", "attention_out" and "mlp_in", stacked over layers.
    """
    num_heads = shapes["attention_out"][1]
    num_kv_heads = (shapes["qkv"][2] - num_heads) // 2
    return _fused_kernels(num_heads, num_kv_heads, gated=len(shapes["mlp_in"]) == 4)


def _fused_kernels(num_heads: int, num_kv_heads: int, gated: bool) -> dict[str, Parts]:
    kernels = {"qkv": {"query": num_heads, "key": num_kv_heads, "value": num_kv_heads}}
    return kernels | ({"mlp_in": {"gate": 1, "up": 1}} if gated else {})


def places_of_parts(kernels: Mapping[str, Parts]) -> dict[str, Part]:
    """Returns where every part lies, by its name.

    Args:
      kernels: the parts of every fused kernel.
    """
    places = {}
    for kernel, parts in kernels.items():
        ends = itertools.accumulate(parts.values())
        for (name, size), end in zip(parts.items(), ends, strict=True):
            places[name] = Part(kernel, slice(end - size, end))
    return places


def split_parts(outputs: Array, parts: Parts) -> list[Array]:
    """Splits what a fused kernel puts out into its parts, in their order.

    Args:
      outputs: `[..., entries, size]`.
      parts: the parts of the kernel.

    Returns:
      An array `[..., entries of the part, size]` for each part.
    """
    *ends, _ = itertools.accumulate(parts.values())
    return jnp.split(outputs, ends, axis=-2)
