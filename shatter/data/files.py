"""Files of rows: JSON lines, plain or gzipped, and parquet tables."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def records(path: str | Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """The rows of a file, JSON not yet parsed: one damaged row is no reason to lose the others.

    Args:
      path: ends in .jsonl or .json (one object a line, UTF-8, with or without .gz) or .parquet.

    Yields:
      The row's number, from 1, and its bytes, or its dict where it comes from a table. Blank lines
      count but are left out.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if the file is a table and pyarrow is not installed.
      ValueError: on another ending, or a damaged archive or table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of rows, found none at {path}")
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


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a parquet table, which needs pyarrow: pip install 'shatter[parquet]'"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable parquet table: {error}") from error


def json_line(record: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8; what UTF-8 cannot hold (half an emoji) is escaped.

    Args:
      record: the object.

    Returns:
      The line, with its newline.
    """
    try:
        return json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, default=str).encode() + b"\n"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all; an interrupted write leaves the old file as it was.

    Args:
      path: the file; its folder is made where it is missing. Compressed if it ends in .gz.
      content: what goes into it.

    Raises:
      ValueError: if the name does not end as JSON lines do.
    """
    path = Path(os.path.realpath(path))
    if not path.name.endswith(JSON_LINES):
        raise ValueError(f"{path}: expected a name ending in {', '.join(JSON_LINES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
