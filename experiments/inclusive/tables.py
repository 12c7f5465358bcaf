"""Comma-separated tables read strictly: every cell must be one that its column may have."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.sources import DataError
from experiments.inclusive.arrays import UNKNOWN, Floats, Ints

_SHOWN_VALUES = 10


class Table(NamedTuple):
    """A table of text.

    Attributes:
      path: Where it was read from.
      header: [C] column names; a second header row, where there is one, is `subheader`.
      subheader: [C], or empty.
      lines: [R] the line of the file in which each row ends.
      rows: [R] lists of C cells.
    """

    path: Path
    header: list[str]
    subheader: list[str]
    lines: list[int]
    rows: list[list[str]]


class Attribute(NamedTuple):
    """A division of respondents into groups: codes [R], an index into `values` or -1 (unknown)."""

    values: tuple[str, ...]
    codes: Ints

    def take(self, people: Ints) -> "Attribute":
        """The same division of the people of these indices."""
        return self._replace(codes=self.codes[people])


def read_table(path: str | Path, *, encoding: str = "utf-8", has_subheader: bool = False) -> Table:
    """Reads a comma-separated file.

    Args:
      path: The file.
      encoding: How its text is encoded.
      has_subheader: Whether the second line belongs to the header.

    Returns:
      The table, with at least one row and as many cells in every row as in the header.

    Raises:
      DataError: The file cannot be read or decoded, has no rows, or a row of another length.
    """
    path = Path(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file)
            numbered = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read ({error.strerror}). Check the path."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: expected comma-separated text in {encoding}, found {error}. "
            "Fetch the original again."
        ) from error
    num_headers = 2 if has_subheader else 1
    if len(numbered) <= num_headers:
        raise DataError(
            f"{path}: expected a header and at least one row, found {len(numbered)} lines."
        )
    width = len(numbered[0][1])
    for line, row in numbered:
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}: expected {width} cells as in the header, found {len(row)}. "
                "Check for a cut line or a comma outside quotes."
            )
    return Table(
        path=path,
        header=numbered[0][1],
        subheader=numbered[1][1] if has_subheader else [],
        lines=[line for line, _ in numbered[num_headers:]],
        rows=[row for _, row in numbered[num_headers:]],
    )


def column_index(table: Table, name: str) -> int:
    """The position of the column of this name; a DataError lists the columns if there is none."""
    if name not in table.header:
        raise DataError(
            f"{table.path}, line 1: expected a column {name!r}, found {', '.join(table.header)}. "
            "Use the file as it was published."
        )
    return table.header.index(name)


def cell_error(table: Table, row: int, column: int, expected: str) -> DataError:
    """The error for a cell whose value its column may not have."""
    return DataError.at(
        table.path,
        table.lines[row],
        table.header[column] or f"column {column + 1}",
        expected=expected,
        found=table.rows[row][column],
        mend="Correct the value or use the file as it was published.",
    )


def codes(table: Table, column: int | str, values: Mapping[str, int]) -> Ints:
    """A column of categories as integers.

    Args:
      table: The table.
      column: A position or a name.
      values: The code of every text that a cell may hold.

    Returns:
      [R] codes.

    Raises:
      DataError: No such column, or a cell that holds another text; with line and column.
    """
    index = column_index(table, column) if isinstance(column, str) else column
    result = np.empty(len(table.rows), np.int64)
    for number, row in enumerate(table.rows):
        if row[index] not in values:
            raise cell_error(table, number, index, _one_of(values))
        result[number] = values[row[index]]
    return result


def numbered(size: int, *, first: int) -> dict[str, int]:
    """The codes 0, 1, ... of the texts of `size` whole numbers from `first` on."""
    return {str(first + index): index for index in range(size)}


def attribute(table: Table, column: str, levels: Sequence[str]) -> Attribute:
    """A column of group names; blank cells are unknown, and other texts a DataError."""
    values = {"": UNKNOWN, **{level: index for index, level in enumerate(levels)}}
    return Attribute(tuple(levels), codes(table, column, values))


def positive_numbers(table: Table, name: str) -> Floats:
    """[R] a column of finite numbers above 0; a DataError with line and column otherwise."""
    index = column_index(table, name)
    result = np.empty(len(table.rows), np.float64)
    for number, row in enumerate(table.rows):
        try:
            result[number] = float(row[index])
        except ValueError as error:
            raise cell_error(table, number, index, "a number above 0") from error
        if not (math.isfinite(result[number]) and result[number] > 0):
            raise cell_error(table, number, index, "a number above 0")
    return result


def identifiers(table: Table, name: str) -> Ints:
    """[R] a column of different whole numbers; a DataError with line and column otherwise."""
    index = column_index(table, name)
    seen: dict[int, int] = {}
    for number, row in enumerate(table.rows):
        try:
            value = int(row[index])
        except ValueError as error:
            raise cell_error(table, number, index, "a whole number") from error
        if value in seen:
            raise cell_error(table, number, index, f"a number not used on line {seen[value]}")
        seen[value] = table.lines[number]
    return np.fromiter(seen, np.int64, len(seen))


def _one_of(values: Mapping[str, int]) -> str:
    texts = [repr(text) for text in values]
    if len(texts) > _SHOWN_VALUES:
        texts = [*texts[: _SHOWN_VALUES // 2], "...", texts[-1]]
    return "one of " + ", ".join(texts)
