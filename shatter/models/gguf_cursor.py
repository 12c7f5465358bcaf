"""Reads the numbers, texts and lists of a GGUF file one after the other, never beyond its end."""

import struct
from typing import Any

import numpy as np

_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""The types of numbers, by their codes in the file."""
_TEXT, _ARRAY = 8, 9


class Cursor:
    """A place in a file, which moves on with what is read and never beyond the end."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.offset = 0

    def take(self, size: int, what: str) -> memoryview:
        """Returns the next bytes, of what a message would name."""
        left = len(self.content) - self.offset
        if size > left:
            raise ValueError(
                f"{what} needs {size} bytes at byte {self.offset}, where {left} are left: the file "
                "is cut off or damaged; download it again"
            )
        self.offset += size
        return self.content[self.offset - size : self.offset]

    def number(self, kind: int, what: str) -> Any:
        """Returns the next number or flag, whose type has a code in `_SCALARS`."""
        form = np.dtype(_SCALARS[kind])
        part = np.frombuffer(self.take(form.itemsize, what), np.uint8 if kind == 7 else form)
        if kind == 7 and part[0] > 1:
            raise ValueError(f"{what} is the flag {part[0]}, expected 0 or 1")
        # 1e-5 is written as the nearest number in single precision, and is meant to be 1e-5.
        return float(str(part[0])) if kind == 6 else part.view(form)[0].item()

    def count(self, what: str, *, least: int) -> int:
        """Returns the next number of things that have at least some bytes each."""
        number = int(self.number(10, f"the number of {what}"))
        if number * least > len(self.content):
            raise ValueError(
                f"it declares {number} {what}, of at least {least} bytes each: it is cut off or "
                "damaged; download it again"
            )
        return number

    def text(self, what: str) -> str:
        """Returns the next text."""
        start = self.offset
        (length,) = struct.unpack("<Q", self.take(8, what))
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{what}, at byte {start}, is not UTF-8: {error.reason}") from error

    def value(self, kind: int, key: str) -> Any:
        """Returns the next number, text or list of a setting."""
        if kind in _SCALARS:
            return self.number(kind, key)
        if kind == _TEXT:
            return self.text(key)
        if kind != _ARRAY:
            raise ValueError(f"{key} has the type {kind}, which the format does not have")
        kind, size = self.number(4, f"the type of {key}"), self.number(10, f"the length of {key}")
        if kind == _TEXT:
            if 8 * size > len(self.content) - self.offset:
                self.take(8 * size, f"{key}, a list of {size} texts,")
            return [self.text(key) for _ in range(size)]
        if kind not in _SCALARS:
            raise ValueError(f"{key} is a list of the type {kind}; expected numbers or texts")
        form = np.dtype("u1" if kind == 7 else _SCALARS[kind])
        return np.frombuffer(self.take(size * form.itemsize, f"{key}, a list of {size},"), form)
