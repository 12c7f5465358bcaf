"""Tensors of a pretrained model's files to our parameters, and back, by its family's table."""

import contextlib
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.families import Family, Tensor, part_of, stored_shape
from shatter.models.tokenizer import read_json
from shatter.models.transformer import transformer
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Row(NamedTuple):
    """A tensor of theirs that a config asks for: a row of the table, at one layer."""

    name: str
    tensor: Tensor
    layer: int | None
    shape: tuple[int, ...]


class _Stored(NamedTuple):
    """A tensor of a file that is open; nothing of it is read yet."""

    file: Path
    opened: Any
    name: str

    def shape(self) -> tuple[int, ...]:
        return tuple(self.opened.get_slice(self.name).get_shape())

    def dtype(self) -> Any:
        kind = self.opened.get_slice(self.name).get_dtype()
        if kind not in _FLOATS:
            raise ValueError(
                f"{self.file}: {self.name} is stored as {kind}; expected one of "
                f"{', '.join(_FLOATS)} (quantised weights are not supported)"
            )
        return jnp.dtype(_FLOATS[kind])

    def read(self) -> np.ndarray:
        return self.opened.get_tensor(self.name)


def read_weights(
    folder: Path, config: TransformerConfig, family: Family, dtype: str | None
) -> Params:
    """Reads model.safetensors, or the shards that the index names, one tensor at a time.

    Args:
      folder: of the model.
      config: of the transformer.
      family: whose table of names holds.
      dtype: of the parameters. None = as stored.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a tensor is missing, unexpected, misshapen or not of floats.
    """
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"dtype must be a float type such as 'float32', found {dtype!r}")
    with contextlib.ExitStack() as stack:
        stored: dict[str, _Stored] = {}
        for file in _weight_files(folder):
            opened = stack.enter_context(_open(file))
            for name in opened.keys():
                whole = name.startswith((family.prefix, "lm_head."))
                stored[name if whole else family.prefix + name] = _Stored(file, opened, name)
        rows = _rows(config, family)
        _check_stored(folder, config, family, rows, stored)
        leaves = {}
        for path, shape in _leaf_shapes(config).items():
            own = [row for row in rows if row.tensor.path == path]
            kind = dtype or jnp.result_type(*{stored[row.name].dtype() for row in own})
            leaf = np.empty(shape, jnp.dtype(kind))
            for row in own:
                value = stored[row.name].read()
                part = _part(leaf, row, config)
                part[...] = (value.T if row.tensor.kind == "linear" else value).reshape(part.shape)
            leaves[path] = jnp.asarray(leaf)
    return {"params": flax.traverse_util.unflatten_dict(leaves, sep="/")}


def write_weights(
    folder: Path,
    config: TransformerConfig,
    family: Family,
    params: Params,
    *,
    max_shard_size: int,
) -> None:
    """Writes model.safetensors, or shards and their index.

    Args:
      folder: an existing one.
      config: of the transformer.
      family: whose table of names holds.
      params: of the transformer.
      max_shard_size: bytes of tensors a file; a larger tensor has a file of its own.

    Raises:
      ValueError: if the parameters are not those of the config.
    """
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params["params"], sep="/").items()
    }
    _check_leaves(leaves, config)
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
        safetensors().numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def existing(path: Path) -> Path:
    """The path of a file that must be there.

    Args:
      path: of the file.

    Returns:
      `path`.

    Raises:
      FileNotFoundError: if it is not; it lists what the folder has.
    """
    if not path.is_file():
        found = sorted(file.name for file in path.parent.iterdir())
        listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
        raise FileNotFoundError(f"{path} is missing; the folder has {listed or 'nothing'}")
    return path


def safetensors() -> Any:
    """The package safetensors, imported when it is needed.

    Returns:
      The module, with its part `numpy`.

    Raises:
      ImportError: naming the extra to install.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "model.safetensors needs the package safetensors: pip install 'shatter[pretrained]'"
        ) from error
    return safetensors


@functools.lru_cache(maxsize=8)
def _leaf_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(transformer(config).init, jax.random.key(0))
    leaves = flax.traverse_util.flatten_dict(params["params"], sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _rows(config: TransformerConfig, family: Family) -> list[_Row]:
    """The tensors of theirs that hold the parameters of a config, leaf by leaf."""
    rows = []
    for path, shape in _leaf_shapes(config).items():
        leaf = np.broadcast_to(np.float32(0), shape)  # for its shape alone: no memory
        for tensor in family.tensors:
            if tensor.path == path:
                layers = range(config.num_layers) if "{layer}" in tensor.name else (None,)
                for layer in layers:
                    row = _Row(tensor.name.format(layer=layer), tensor, layer, ())
                    part = _part(leaf, row, config)
                    rows.append(row._replace(shape=stored_shape(tensor, part.shape)))
    return rows


def _part(leaf: np.ndarray, row: _Row, config: TransformerConfig) -> np.ndarray:
    """The view of our leaf that a tensor of theirs is."""
    leaf = leaf if row.layer is None else leaf[row.layer]
    return leaf if row.tensor.part is None else leaf[..., part_of(row.tensor, config), :]


def _to_stored(leaf: np.ndarray, row: _Row, config: TransformerConfig) -> np.ndarray:
    part = _part(leaf, row, config)
    linear = row.tensor.kind == "linear"
    value = part.reshape(row.shape[::-1]).T if linear else part.reshape(row.shape)
    return np.ascontiguousarray(value)  # safetensors writes the memory of a view, not its values


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{folder / INDEX}: expected a weight_map of names to files")
        return [existing(folder / name) for name in sorted(set(places.values()))]
    for pickled in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (folder / pickled).is_file():
            raise FileNotFoundError(
                f"{folder} has its weights in pickled form only ({pickled}), which can run code "
                "and is not read: convert them where torch and transformers are installed, by "
                "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    return [existing(folder / WEIGHTS)]


def _open(file: Path) -> Any:
    package = safetensors()
    try:
        return package.safe_open(file, framework="numpy")
    except package.SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}; fetch it "
            "again (by `git lfs pull` where it is a pointer)"
        ) from error


def _check_stored(
    folder: Path,
    config: TransformerConfig,
    family: Family,
    rows: list[_Row],
    stored: Mapping[str, _Stored],
) -> None:
    """Refuses names and shapes that the config does not ask for; names the first, counts all."""
    expected = {row.name: row.shape for row in rows}
    found = {name: tensor.shape() for name, tensor in stored.items()}
    passed_over = (*family.passed_over, "lm_head.weight") if config.tied else family.passed_over
    whole = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
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
            f"{problems[0]}. The weights do not fit {folder / 'config.json'}: of {len(expected)} "
            f"tensors {len(missing)} are missing and {len(misshapen)} have another shape, and "
            f"{len(unexpected)} are unexpected"
        )
    if config.tied and "lm_head.weight" in found:
        table = next(row.name for row in rows if row.tensor.path == "token_embedding/embedding")
        head = stored["lm_head.weight"]
        if not np.array_equal(head.read(), stored[table].read()):
            raise ValueError(
                f"{head.file}: lm_head.weight is not {table}, but {folder / 'config.json'} ties "
                "them: set its tie_word_embeddings to false if the head counts, or drop the tensor"
            )


def _check_leaves(leaves: Mapping[str, np.ndarray], config: TransformerConfig) -> None:
    expected = _leaf_shapes(config)
    found = {path: leaf.shape for path, leaf in leaves.items()}
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            raise ValueError(
                f"the parameters are not those of the config: {path} has shape "
                f"{found.get(path)}, expected {expected.get(path)} (None = absent)"
            )
