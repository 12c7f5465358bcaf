"""Opens the weights of a GGUF file as if it were a safetensors file."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from shatter.models.gguf_header import Header, gguf

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_CHUNK = 2**18  # values that are dequantised at a time, which is faster than whole tensors


class Weights:
    """The tensors of a GGUF file, with those methods of `safetensors.safe_open` that are used."""

    def __init__(self, header: Header) -> None:
        self.header = header
        _check_kinds(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: the memory is unmapped with the last array that refers to it."""

    def keys(self) -> Iterable[str]:
        """Returns the names of the tensors."""
        return self.header.tensors.keys()

    def get_slice(self, name: str) -> "_Slice":
        """Returns the shape and the type of a tensor."""
        place = self.header.tensors[name]
        return _Slice(place.shape, place.kind if place.kind in _FLOATS else "F32")

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns the values of a tensor as a folder would have them; quantised ones as float32."""
        return _as_in_folders(self.header, name, read_tensor(self.header, name))


class _Slice(NamedTuple):
    shape: tuple[int, ...]
    kind: str

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_dtype(self) -> str:
        return self.kind


def read_tensor(header: Header, name: str) -> np.ndarray:
    """Reads the values of a tensor as they are in the file.

    Args:
      header: the header of the file.
      name: the name of the tensor.

    Returns:
      An array: of a float type a view of the file, of a quantised one a copy in float32.
    """
    place = header.tensors[name]
    content = header.content[place.start : place.stop]
    if place.kind in _FLOATS:
        return content.view(_FLOATS[place.kind]).reshape(place.shape)
    package = gguf()
    kind = package.GGMLQuantizationType[place.kind]
    block, size = package.GGML_QUANT_SIZES[kind]
    blocks, step = content.reshape(-1, size), max(_CHUNK // block, 1)
    values = np.empty((len(blocks), block), np.float32)
    for start in range(0, len(blocks), step):
        part = values[start : start + step]
        # The package takes sixteen rows at a time, so a chunk is given to it as one row.
        row = blocks[start : start + step].reshape(1, -1)
        part[...] = package.quants.dequantize(row, kind).reshape(part.shape)
    return values.reshape(place.shape)


def _as_in_folders(header: Header, name: str, values: np.ndarray) -> np.ndarray:
    """Returns a tensor as folders have it.

    Files of llama have the two halves of every head of queries and keys interleaved; those of
    gemma3 have the factor of a norm, 1 + w, where folders have w.
    """
    architecture = header.settings["general.architecture"]
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return values - 1
    match = re.fullmatch(r"blk\.\d+\.attn_(q|k)\.(weight|bias)", name)
    if architecture != "llama" or match is None:
        return values
    heads = header.settings["llama.attention.head_count"]
    if match[1] == "k":
        heads = header.settings.get("llama.attention.head_count_kv", heads)
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(values.shape)


def _check_kinds(header: Header) -> None:
    """Raises ValueError for a tensor whose type cannot be read."""
    for name, place in header.tensors.items():
        if not _is_known(place.kind):
            kinds = [kind.name for kind in gguf().GGMLQuantizationType if _is_known(kind.name)]
            raise ValueError(
                f"{header.file}: {name} is stored as {place.kind}; the known types are "
                f"{', '.join(kinds)}"
            )


def _is_known(kind: str) -> bool:
    if kind in _FLOATS:
        return True
    package = gguf()
    code = package.GGMLQuantizationType[kind]
    try:
        package.quants.dequantize(np.zeros((1, package.GGML_QUANT_SIZES[code][1]), np.uint8), code)
    except NotImplementedError:
        return False
    return True
