"""Frozen weights in fewer bytes: bfloat16, or 8-bit integers with a float32 scale for each channel.

A matrix W of int8 is `integers * scale`, one scale for each of its outputs (for each token of an
embedding), so that a layer multiplies its inputs by the integers and its outputs by the scales. The
products are in the type of the computation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array, Params

WIDTHS = ("bfloat16", "int8")


def narrow(
    config: TransformerConfig, params: Params, dtype: str
) -> tuple[TransformerConfig, Params]:
    """Returns a transformer whose matrices take fewer bytes, for bases that are not trained.

    Kernels and the token embedding are narrowed, norms, biases and learned positions are not. The
    computation stays in float32 unless the config says bfloat16. Adapters (`with_lora`) are added
    as to the base itself, in their own type, and are trained alone.

    Args:
      config: the configuration of the transformer.
      params: its parameters in float32, without adapters.
      dtype: "bfloat16", or "int8". An entry of int8 is off by at most half a scale, that is 1/254
        of the largest entry of its channel.

    Returns:
      The config and the parameters. Those of int8 have a `kernel_scale` or `embedding_scale` beside
      each matrix, and biases beside a scale are in its units; `save_pretrained` and `merge_lora`
      are for the parameters before.

    Raises:
      ValueError: if the type is another, or the parameters are narrow already or have adapters.
    """
    if dtype not in WIDTHS:
        raise ValueError(f"expected the type bfloat16 or int8 of narrow weights, found {dtype!r}")
    weights = dict(params["params"])
    if "lora" in params or weights["token_embedding"]["embedding"].dtype != jnp.float32:
        raise ValueError(
            "expected parameters in float32 without adapters, found adapters or another type: load "
            'the base with load_pretrained(folder, dtype="float32")'
        )
    held: Callable[..., dict[str, Array]] = _bfloat16 if dtype == "bfloat16" else _int8
    weights["token_embedding"] = held(weights["token_embedding"], "embedding", (1,))
    if "head" in weights:
        weights["head"] = held(weights["head"], "kernel", (0,))
    weights["blocks"] = {
        name: held(layer, "kernel", (1, 2) if name == "attention_out" else (1,))
        if "kernel" in layer
        else layer
        for name, layer in weights["blocks"].items()
    }
    config = dataclasses.replace(config, dtype=config.dtype or "float32")
    return config, {**params, "params": weights}


def _bfloat16(layer: dict[str, Array], name: str, axes: tuple[int, ...]) -> dict[str, Any]:
    del axes
    return {**layer, name: jnp.asarray(layer[name], jnp.bfloat16)}


def _int8(layer: dict[str, Array], name: str, axes: tuple[int, ...]) -> dict[str, Any]:
    """Returns a layer with integers and scales; `axes` are those of the inputs."""
    matrix = jnp.asarray(layer[name])
    largest = jnp.max(jnp.abs(matrix), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    integers = jnp.round(matrix / scale).astype(jnp.int8)
    scale = jnp.squeeze(scale, axes)
    made = {**layer, name: integers, f"{name}_scale": scale}
    if "bias" in layer:
        made["bias"] = jnp.asarray(layer["bias"]) / scale
    return made
