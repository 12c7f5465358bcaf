"""Files of rows: JSON lines, plain or gzipped, and parquet tables."""

import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shatter.data.atomic import write_atomically

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def records(path: str | Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """The rows of a file, JSON not yet parsed: one damaged row is no reason to lose the others.

    Args:
      path: ends in .jsonl or .json (one object a line, UTF-8, with or without .gz) or .parquet.

    Yields:
      The row's number, from 1, and its bytes, or its dict where it comes from a table. Blank lines
      count but are left out, and so are the nulls by which a table fills up its structures.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if the file is a table and pyarrow is not installed.
      ValueError: on a folder, a pipe or a device, another ending, a file that may not be read, or a
        damaged archive or table.
    """
    path = Path(path)
    _assert_readable(path)
    if path.name.endswith(".parquet"):
        yield from _table_rows(path)
        return
    if not path.name.endswith(JSON_LINES):
        raise ValueError(
            f"{path}: expected a name ending in {', '.join(JSON_LINES)} or .parquet; other "
            "formats must be converted to JSON lines, one object a line"
        )
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the gzip archive is damaged: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _assert_readable(path: Path) -> None:
    """Refuses what is no file of rows, so that nothing waits at a pipe or a device for ever."""
    name = ascii(str(path)) if "\0" in str(path) else str(path)
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileNotFoundError(
            f"expected a file of rows, found none at {name}: {reason}"
        ) from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path}: expected a file of rows, found {found}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: cannot be read: {os.strerror(errno.EACCES)}")


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a parquet table, which needs pyarrow: pip install 'shatter-lm[parquet]'"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, _without_padding(row)
    except Exception as error:  # Arrow's layers each have errors of their own for damaged bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable parquet table: {reason}") from error


def _without_padding(value: Any) -> Any:
    """A table's value as JSON lines would have it: a structure's nulls are fields left out.

    All structures of a column have the fields of each, null where a row had none. A null in a list
    was written there and stays.
    """
    if isinstance(value, dict):
        return {name: _without_padding(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        if value and all(isinstance(part, tuple) for part in value):  # how Arrow shows a map
            return _without_padding(dict(value))
        return [_without_padding(part) for part in value]
    return value


def json_line(record: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8; what UTF-8 cannot hold (half an emoji) is escaped.

    Args:
      record: the object.

    Returns:
      The line, with its newline.

    Raises:
      ValueError: if a number is NaN or infinite, which JSON does not have.
    """
    try:
        return json.dumps(record, ensure_ascii=False, default=str, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, default=str, allow_nan=False).encode() + b"\n"


def write_json_lines(path: str | Path, objects: Iterable[dict[str, Any]]) -> None:
    """Writes objects as JSON lines; the file is replaced whole or stays as it was.

    Args:
      path: the file, ending in .jsonl or .json, and compressed if it ends in .gz; its folder is
        made if it is missing.
      objects: the objects, one a line.

    Raises:
      OSError: if the file cannot be written, because the disk is full for example.
      ValueError: if the name ends otherwise, or a number is NaN or infinite.
    """
    name = Path(os.path.realpath(path)).name
    if not name.endswith(JSON_LINES):
        raise ValueError(f"{path}: expected a name ending in {', '.join(JSON_LINES)}")
    content = b"".join(map(json_line, objects))
    write_atomically(path, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
