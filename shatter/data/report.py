"""What was wrong with a row, and how many rows, truncations and tokens there were."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shatter.data.files import write_json_lines

OnBadRow = Literal["fail", "skip"]


class DataError(ValueError):
    """A file of preferences that cannot be used as it is; the message says how to mend it."""


class BadRow(Exception):
    """`BadRow(field, expected, found, mend="")`, inside the package: one row cannot be used."""


class Problem(NamedTuple):
    """One bad row.

    Attributes:
      source: "file:line" ("file:row" in a table).
      text: the row itself, as far as it could be read.
      field: where in the row, such as `completions[1]`.
      expected: what belongs there.
      found: what is there.
      mend: what to do about it; may be empty.
    """

    source: str
    text: str
    field: str
    expected: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        message = f"{self.source}: {self.field}: expected {self.expected}, found {self.found}"
        message = f"{message}; {self.mend}" if self.mend else message
        # The name of a file or of a field may hold what no terminal can show.
        return message.encode("utf-8", "backslashreplace").decode()


class Report(NamedTuple):
    """Counts of one pass over rows.

    Attributes:
      read: rows that came in.
      kept: rows that went out; more than came in where votes make several of one.
      skipped: rows left out; `problems` says why.
      implicit_prompts: rows whose prompt was cut out of the completions.
      truncated_prompts: rows whose prompt lost tokens on the left.
      truncated_completions: completions that lost tokens on the right.
      truncated_tokens: tokens lost in all, prompts counted once.
      tokens: tokens of all documents kept, prompts counted once a completion.
      problems: the bad rows, in order.
    """

    read: int = 0
    kept: int = 0
    skipped: int = 0
    implicit_prompts: int = 0
    truncated_prompts: int = 0
    truncated_completions: int = 0
    truncated_tokens: int = 0
    tokens: int = 0
    problems: tuple[Problem, ...] = ()


def raw_text(raw: bytes | dict[str, Any]) -> str:
    """A row of a file as text, for `Problem`.

    Args:
      raw: the line, or the object.

    Returns:
      One line, for people to read; damaged bytes are replaced.
    """
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace").strip()
    text = json.dumps(raw, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def settle(
    report: Report, num_new: int, on_bad_row: OnBadRow, bad_rows_path: str | Path | None
) -> None:
    """Fails on bad rows, or writes them down.

    Args:
      report: with all problems so far.
      num_new: how many of them, the last ones, this pass found.
      on_bad_row: "fail" or "skip".
      bad_rows_path: where "skip" writes all problems, as JSON lines; None = nowhere.

    Raises:
      DataError: on "fail" if there is a new problem; on either if no row is kept.
      ValueError: if `on_bad_row` is neither.
    """
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"on_bad_row expects 'fail' or 'skip', found {on_bad_row!r}")
    if num_new and on_bad_row == "fail":
        others = f"\n{num_new - 1} more rows are bad." if num_new > 1 else ""
        first = report.problems[-num_new]
        raise DataError(f"{first}{others}\non_bad_row='skip' leaves bad rows out.")
    if bad_rows_path is not None:
        write_json_lines(bad_rows_path, (problem._asdict() for problem in report.problems))
    if not report.kept:
        first_bad = f"; the first: {report.problems[0]}" if report.problems else ""
        raise DataError(f"of {report.read} rows no good one is left{first_bad}")
