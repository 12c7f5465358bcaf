"""Reads comma-separated tables strictly: a cell that its column may not have is an error."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.sources import SourceError
from experiments.inclusive.arrays import UNKNOWN, Floats, Ints

_SHOWN_VALUES = 10


class Table(NamedTuple):
    """A table of text.

    Attributes:
      path: Where it was read from.
      header: [C] column names.
      subheader: [C] the second header row, or empty.
      lines: [R] the line of the file in which each row ends.
      rows: [R] lists of C cells.
    """

    path: Path
    header: list[str]
    subheader: list[str]
    lines: list[int]
    rows: list[list[str]]


class Attribute(NamedTuple):
    """A division of respondents into groups: codes [R] are indices into `values`, -1 = unknown."""

    values: tuple[str, ...]
    codes: Ints

    def take(self, people: Ints) -> "Attribute":
        """Returns the same division of the people with these indices."""
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
      SourceError: if the file cannot be read or decoded, has no rows, or a row of another length.
    """
    path = Path(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file)
            numbered = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise SourceError(
            f"{path}: the file cannot be read ({error.strerror}). Check the path."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"{path}: expected comma-separated text in {encoding}, found {error}. "
            "Fetch the original again."
        ) from error
    num_headers = 2 if has_subheader else 1
    if len(numbered) <= num_headers:
        raise SourceError(
            f"{path}: expected a header and at least one row, found {len(numbered)} lines."
        )
    width = len(numbered[0][1])
    for line, row in numbered:
        if len(row) != width:
            raise SourceError(
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
    """Returns the position of a column; raises a SourceError with the columns if there is none."""
    if name not in table.header:
        raise SourceError(
            f"{table.path}, line 1: expected a column {name!r}, found {', '.join(table.header)}. "
            "Use the file as it was published."
        )
    return table.header.index(name)


def cell_error(table: Table, row: int, column: int, expected: str) -> SourceError:
    """Returns the error for a cell whose value its column may not have."""
    return SourceError.at(
        table.path,
        table.lines[row],
        table.header[column] or f"column {column + 1}",
        expected=expected,
        found=table.rows[row][column],
        mend="Correct the value or use the file as it was published.",
    )


def codes(table: Table, column: int | str, values: Mapping[str, int]) -> Ints:
    """Returns a column of categories as integers.

    Args:
      table: The table.
      column: A position or a name.
      values: The code of every text that a cell may hold.

    Returns:
      [R] codes.

    Raises:
      SourceError: if there is no such column, or a cell has another text; with line and column.
    """
    index = column_index(table, column) if isinstance(column, str) else column
    result = np.empty(len(table.rows), np.int64)
    for number, row in enumerate(table.rows):
        if row[index] not in values:
            raise cell_error(table, number, index, _one_of(values))
        result[number] = values[row[index]]
    return result


def numbered(size: int, *, first: int) -> dict[str, int]:
    """Returns the codes 0, 1, ... by the texts of `size` whole numbers, from `first` on."""
    return {str(first + index): index for index in range(size)}


def attribute(table: Table, column: str, levels: Sequence[str]) -> Attribute:
    """Returns a column of group names; a blank cell is unknown, another text is a SourceError."""
    values = {"": UNKNOWN, **{level: index for index, level in enumerate(levels)}}
    return Attribute(tuple(levels), codes(table, column, values))


def positive_numbers(table: Table, name: str) -> Floats:
    """Returns a column [R] of finite numbers above 0; raises a SourceError for other cells."""
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
    """Returns a column [R] of whole numbers that all differ; raises a SourceError otherwise."""
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
