"""Reads and writes the weights of a pretrained model, by the table of its family."""

import contextlib
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.families import Family, Tensor, part_of, stored_shape
from shatter.models.saving import check_finite, write_index, write_tensors
from shatter.models.transformer import transformer
from shatter.models.transformer_config import TransformerConfig
from shatter.models.weight_files import (
    INDEX,
    WEIGHTS,
    Stored,
    check_size,
    float_type,
    num_values,
    open_weights,
    weight_files,
)
from shatter.types import Params


class _Row(NamedTuple):
    """A tensor that the files of a model must have: a tensor of its family, for one layer.

    Attributes:
      name: its name in the files.
      tensor: the tensor of the family.
      layer: the number of the block; None of a tensor outside the blocks.
      shape: its shape in the files.
    """

    name: str
    tensor: Tensor
    layer: int | None
    shape: tuple[int, ...]


def read_weights(
    folder: Path, config: TransformerConfig, family: Family, dtype: str | None
) -> Params:
    """Reads model.safetensors, the files that the index names, or a GGUF file, tensor by tensor.

    Args:
      folder: the folder of the model, or its GGUF file.
      config: the configuration of the transformer.
      family: its family, by the names of these files.
      dtype: the type of the parameters. None = as stored.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a tensor is missing, unexpected, not finite or not of floats, has another
        shape, or has values beyond the range of `dtype`.
    """
    wanted_dtype = None if dtype is None else float_type(dtype)
    with contextlib.ExitStack() as stack:
        stored = _open_all(folder, family, stack)
        _check_sizes(folder, config, family, stored)
        rows = _rows(config, family)
        _check_stored(folder, config, family, rows, stored)
        leaves = {}
        for path, shape in _leaf_shapes(config).items():
            own = [row for row in rows if row.tensor.path == path]
            stored_dtypes = {stored[row.name].dtype() for row in own}
            dtypes = stored_dtypes if wanted_dtype is None else {wanted_dtype}
            leaf_dtype = jnp.result_type(*map(jax.dtypes.canonicalize_dtype, dtypes))
            leaf = _empty(shape, leaf_dtype)
            for row in own:
                value = stored[row.name].read(leaf_dtype)
                part = _part(leaf, row, config)
                part[...] = (value.T if row.tensor.kind == "linear" else value).reshape(part.shape)
                del value  # before the next is read, because it may be half of the model
            leaves[path] = jax.device_put(leaf)
    return {"params": flax.traverse_util.unflatten_dict(leaves, sep="/")}


def write_weights(
    folder: Path,
    config: TransformerConfig,
    family: Family,
    params: Params,
    *,
    max_shard_size: int,
) -> None:
    """Writes model.safetensors, or several files and their index.

    Args:
      folder: an existing folder.
      config: the configuration of the transformer.
      family: its family.
      params: its parameters.
      max_shard_size: the largest size of a file, in bytes; a larger tensor has a file of its own.

    Raises:
      ValueError: if the parameters do not fit the configuration, or are not finite.
    """
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params["params"], sep="/").items()
    }
    _check_leaves(leaves, config)
    check_finite(leaves.items())
    groups: list[list[_Row]] = [[]]
    total = used = 0
    for row in _rows(config, family):
        size = math.prod(row.shape) * leaves[row.tensor.path].dtype.itemsize
        if groups[-1] and used + size > max_shard_size:
            groups.append([])
            used = 0
        groups[-1].append(row)
        used, total = used + size, total + size
    places: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        name = WEIGHTS if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors = {row.name: _to_stored(leaves[row.tensor.path], row, config) for row in group}
        write_tensors(folder / name, tensors)
        places |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        write_index(folder, places, total)


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array that jax takes over on a CPU without a copy, as its memory is aligned."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _open_all(folder: Path, family: Family, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Opens all files, and returns their tensors by name, with the prefix of the family."""
    stored: dict[str, Stored] = {}
    for file in weight_files(folder):
        opened = stack.enter_context(open_weights(file))
        for name in opened.keys():
            if name.startswith(family.other_parts):
                continue
            is_whole = name.startswith((family.prefix, "lm_head."))
            tensor = Stored(file, opened, name)
            first = stored.setdefault(name if is_whole else family.prefix + name, tensor)
            if first is not tensor:
                raise ValueError(
                    f"{file}: {name} is also in {first.file}, as {first.name}; expected it once"
                )
    return stored


@functools.lru_cache(maxsize=8)
def _leaf_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(transformer(config).init, jax.random.key(0))
    leaves = flax.traverse_util.flatten_dict(params["params"], sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _rows(config: TransformerConfig, family: Family) -> list[_Row]:
    """Returns the tensors that the files must have, in the order of our leaves."""
    rows = []
    for path, shape in _leaf_shapes(config).items():
        for tensor in family.tensors:
            if tensor.path == path:
                of_layer = "{layer}" in tensor.name
                part = shape[1:] if of_layer else shape
                if tensor.part is not None:
                    entries = part_of(tensor, config)
                    part = (*part[:-2], entries.stop - entries.start, part[-1])
                layers = range(config.num_layers) if of_layer else (None,)
                rows += [
                    _Row(tensor.name.format(layer=i), tensor, i, stored_shape(tensor, part))
                    for i in layers
                ]
    return rows


def _part(leaf: np.ndarray, row: _Row, config: TransformerConfig) -> np.ndarray:
    """Returns a view of the part of our leaf that a tensor holds."""
    leaf = leaf if row.layer is None else leaf[row.layer]
    return leaf if row.tensor.part is None else leaf[..., part_of(row.tensor, config), :]


def _to_stored(leaf: np.ndarray, row: _Row, config: TransformerConfig) -> np.ndarray:
    part = _part(leaf, row, config)
    linear = row.tensor.kind == "linear"
    value = part.reshape(row.shape[::-1]).T if linear else part.reshape(row.shape)
    return np.ascontiguousarray(value)  # safetensors would save the memory behind a view


def _check_sizes(
    folder: Path, config: TransformerConfig, family: Family, stored: Mapping[str, Stored]
) -> None:
    """Raises ValueError for sizes that are too large for the files, before memory is allocated."""
    sizes = {
        "vocab_size": config.vocab_size,
        "width": config.width,
        "num_heads": config.num_heads,
        "num_kv_heads": config.kv_heads,
        "head_size": config.size_of_head,
        "mlp_width": config.hidden_width,
    }
    if config.rope is None:
        sizes["max_length"] = config.max_length
    total = num_values(stored.values())
    try:
        name = family.fields["num_layers"][0]
        check_size(name, config.num_layers, len(stored), "tensors")
        for field, size in sizes.items():
            check_size(family.fields.get(field, (field,))[0], size, total, "numbers")
    except ValueError as error:
        raise ValueError(f"{_settings_file(folder)}: {error}") from error


def _settings_file(folder: Path) -> Path:
    """Returns the file that the config comes from; a GGUF file has both config and weights."""
    return folder if folder.is_file() else folder / "config.json"


def _check_stored(
    folder: Path,
    config: TransformerConfig,
    family: Family,
    rows: list[_Row],
    stored: Mapping[str, Stored],
) -> None:
    """Raises ValueError with the first name or shape that is not as expected."""
    expected = {row.name: row.shape for row in rows}
    found = {name: tensor.shape() for name, tensor in stored.items()}
    passed_over = (*family.passed_over, "lm_head.weight") if config.tied else family.passed_over
    whole = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    whole = folder if folder.is_file() else whole
    missing = [
        f"{whole}: {name} is missing, expected with shape {shape}"
        for name, shape in expected.items()
        if name not in found
    ]
    misshapen = [
        f"{stored[name].file}: {name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    unexpected = [
        f"{stored[name].file}: {stored[name].name} with shape {shape} is unexpected"
        for name, shape in found.items()
        if name not in expected and not name.endswith(passed_over)
    ]
    if problems := [*missing, *misshapen, *unexpected]:
        raise ValueError(
            f"{problems[0]}. The weights do not fit {_settings_file(folder)}: of {len(expected)} "
            f"tensors {len(missing)} are missing and {len(misshapen)} have another shape, and "
            f"{len(unexpected)} are unexpected"
        )
    if config.tied and "lm_head.weight" in found:
        table = next(row.name for row in rows if row.tensor.path == "token_embedding/embedding")
        head = stored["lm_head.weight"]
        if not np.array_equal(head.read(), stored[table].read()):
            raise ValueError(
                f"{head.file}: lm_head.weight differs from {table}, but {folder / 'config.json'} "
                "ties them: set its tie_word_embeddings to false to use the head, or remove the "
                "tensor"
            )


def _check_leaves(leaves: Mapping[str, np.ndarray], config: TransformerConfig) -> None:
    expected = _leaf_shapes(config)
    found = {path: leaf.shape for path, leaf in leaves.items()}
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            raise ValueError(
                f"the parameters do not fit the config: {path} has shape "
                f"{found.get(path)}, expected {expected.get(path)} (None = absent)"
            )
