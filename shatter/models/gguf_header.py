"""Reads the header of a GGUF file: its settings, and where its tensors are.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come
from strangers, and a header consists of counts, lengths and offsets. Each of them is compared with
the size of the file before anything is read or allocated by it, which the reader of the package
gguf does not do: 113 bytes that declare an array of 2^60 numbers fill its memory. For a vocabulary
of 262,144 tokens that reader also takes longer than all of loading does here. The package is asked
for the sizes of the types (here) and for the values of the tensors (`gguf_weights`).
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shatter.models.fields import shown
from shatter.models.gguf_cursor import Cursor

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_AXES = 4  # of a tensor, in ggml


class Place(NamedTuple):
    """A tensor of a file, of which nothing has been read yet.

    Attributes:
      shape: its shape, rows first as in numpy.
      kind: how its values are stored: "F32", "Q4_1", ...
      start: where its bytes begin in the file.
      stop: where they end.
    """

    shape: tuple[int, ...]
    kind: str
    start: int
    stop: int


class Header(NamedTuple):
    """What a GGUF file says about itself.

    Attributes:
      file: the path of the file.
      settings: the settings by key: a number, a flag, a text, a list of texts, or a numpy array.
      tensors: the tensors by name.
      content: the bytes of the whole file, memory-mapped.
    """

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, Place]
    content: np.ndarray


def read_header(file: Path) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
      file: the path of an existing file.

    Returns:
      The header, in which every tensor lies within the file and none overlaps another.

    Raises:
      ValueError: if the file is not a GGUF file, is cut off, or declares a count, length, type or
        offset that it cannot have; the message names it.
      ImportError: if the package gguf is missing.
    """
    try:
        return _read(file)
    except ValueError as error:
        size = file.stat().st_size
        raise ValueError(f"{file} ({size} bytes) cannot be read as GGUF: {error}") from error


def gguf() -> Any:
    """Imports the package gguf.

    Raises:
      ImportError: if it is missing; the message names the extra to install.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "a .gguf file needs the package gguf: pip install 'shatter-lm[gguf]'"
        ) from error
    return gguf


def _read(file: Path) -> Header:
    if file.stat().st_size < 24:
        raise ValueError("expected at least 24 bytes: is it cut off? Download it again")
    content = np.asarray(np.memmap(file, np.uint8, "r"))
    cursor = Cursor(content.data)
    if (magic := bytes(cursor.take(4, "the magic number"))) != MAGIC:
        raise ValueError(f"it begins with {magic!r}, expected {MAGIC!r}")
    version = cursor.number(4, "the version")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        hint = ": its bytes are in big-endian order" if version & 0xFFFF == 0 else ""
        raise ValueError(f"its version is {version}{hint}; known are {known}, little-endian")
    num_tensors = cursor.count("tensors", least=8 + 4 + 4 + 8)
    num_settings = cursor.count("settings", least=8 + 4 + 1)
    settings: dict[str, Any] = {}
    for i in range(num_settings):
        key = cursor.text(f"the key of setting {i + 1} of {num_settings}")
        if key in settings:
            raise ValueError(f"the setting {key} is there twice")
        settings[key] = cursor.value(cursor.number(4, f"the type of {key}"), key)
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        expected = "expected a power of two from 8 on"
        raise ValueError(f"general.alignment is {shown(alignment)}, {expected}")
    infos = [_tensor_info(cursor, i, num_tensors) for i in range(num_tensors)]
    data = -(-cursor.offset // alignment) * alignment
    tensors = _places(infos, data, alignment, len(content))
    return Header(file, settings, tensors, content)


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _tensor_info(cursor: Cursor, i: int, num_tensors: int) -> _Info:
    name = cursor.text(f"the name of tensor {i + 1} of {num_tensors}")
    if (axes := cursor.number(4, f"the number of axes of {name}")) > _MOST_AXES:
        raise ValueError(f"{name} has {axes} axes, expected at most {_MOST_AXES}")
    sizes = [cursor.number(10, f"the shape of {name}") for _ in range(axes)]
    kind = cursor.number(4, f"the type of {name}")
    return _Info(name, tuple(sizes[::-1]), kind, cursor.number(10, f"the offset of {name}"))


def _places(infos: list[_Info], data: int, alignment: int, size: int) -> dict[str, Place]:
    """Returns where the tensors are, after checking it against the size of the file."""
    places: dict[str, Place] = {}
    for name, shape, code, offset in infos:
        kind, num_bytes = _stored_size(name, shape, code)
        start = data + offset
        if offset % alignment:
            raise ValueError(f"{name} is at the offset {offset}, no multiple of {alignment}")
        if start + num_bytes > size:
            raise ValueError(
                f"{name} {shape} in {kind} is at bytes {start} to {start + num_bytes}, beyond the "
                "end: the file is cut off or damaged; download it again"
            )
        if name in places:
            raise ValueError(f"the tensor {name} is there twice")
        places[name] = Place(shape, kind, start, start + num_bytes)
    ordered = sorted(places.items(), key=lambda item: item[1].start)
    for (name, place), (other, following) in itertools.pairwise(ordered):
        if place.stop > following.start:
            raise ValueError(f"the tensors {name} and {other} overlap at byte {following.start}")
    return places


def _stored_size(name: str, shape: tuple[int, ...], code: int) -> tuple[str, int]:
    """Returns the name of a tensor's type, and how many bytes the tensor has in the file."""
    package = gguf()
    try:
        kind = package.GGMLQuantizationType(code)
    except ValueError:
        known = ", ".join(kind.name for kind in package.GGMLQuantizationType)
        raise ValueError(f"{name} has the type {code}; the known types are {known}") from None
    block, block_bytes = package.GGML_QUANT_SIZES[kind]
    if not shape or 0 in shape or shape[-1] % block:
        raise ValueError(
            f"{name} has shape {shape}; expected sizes from 1 on, the last a multiple of {block}, "
            f"the block of {kind.name}"
        )
    return kind.name, math.prod(shape) // block * block_bytes
