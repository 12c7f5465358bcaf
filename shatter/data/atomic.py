"""Atomic writes: a file is replaced whole or stays as it was."""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
"""Names that `replacing` makes: the start of the file's name, the process, a random number."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once the block has ended without an error.

    Until then readers see the old file, or none. The new content is on the disk before it takes the
    old one's place, so that not even a power cut leaves half a file. The temporary name, beside the
    file, is unique: several processes, or threads, may write one file, and the last to end wins.

    Args:
      path: the file to replace; its folder is made if it is missing. If `path` is a link, the file
        that it points to is replaced.

    Yields:
      The new file, open for bytes.

    Raises:
      OSError: if the file cannot be written, because the disk is full for example.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is shortened because file systems allow 255 bytes, of which this adds about 25.
    name = f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all; an interrupted write leaves the old file as it was.

    Args:
      path: the file to replace, as in `replacing`.
      content: the bytes to write.

    Raises:
      OSError: if the file cannot be written, because the disk is full for example.
    """
    with replacing(path) as file:
        file.write(content)


def remove_unfinished(folder: str | Path, *, age: float = 0.0) -> None:
    """Removes the temporary files that killed processes left behind in `replacing`.

    Args:
      folder: the folder of the files that were being replaced; folders in it are not searched.
      age: seconds since a file was last written; younger ones stay because another process may
        still be writing them.
    """
    for file in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):  # its process has just finished it
                if time.time() - file.stat().st_mtime >= age:
                    file.unlink()
