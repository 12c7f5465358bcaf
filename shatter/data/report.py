"""Reports on rows: problems with single rows, and counts of rows, truncations and tokens."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shatter.data.files import write_json_lines

OnBadRow = Literal["fail", "skip"]


SKIP_ADVICE = (
    "\nTo leave bad rows out, set on_bad_row='skip' (--on_bad_row=skip on the command line)."
)
"""The end of the message of `RowsError` if rows are bad and `on_bad_row` is "fail"."""


class RowsError(ValueError):
    """Rows of preferences cannot be used as they are; the message says how to mend them."""


class BadRow(Exception):
    """One row cannot be used; `BadRow(field, expected, found, mend="")`, as in `Problem`.

    It stays inside this package, which turns it into a `Problem`.
    """


class Problem(NamedTuple):
    """The reason why a row cannot be used.

    Attributes:
      source: "file:line" ("file:row" of a table).
      text: the row itself, as far as it could be read.
      field: the place in the row, such as `completions[1]`.
      expected: what belongs there.
      found: what is there.
      mend: how to mend it; may be empty.
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
        # Names of files and fields may have characters that a terminal cannot show.
        return message.encode("utf-8", "backslashreplace").decode()


class Report(NamedTuple):
    """Counts of rows, truncations and tokens.

    Attributes:
      read: rows that were read.
      kept: rows that are left; more than were read if votes make several rows of one.
      skipped: rows that were left out; `problems` has the reasons.
      implicit_prompts: rows whose prompt was cut out of their completions.
      truncated_prompts: rows whose prompt lost tokens on the left.
      truncated_completions: completions that lost tokens on the right.
      truncated_tokens: all tokens that were lost; those of a prompt count once.
      tokens: tokens of all documents that are left; a prompt counts once for every completion.
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
    """Returns a row of a file as a line of text for people, for `Problem.text`.

    Args:
      raw: the line, or the object. Bytes that are not UTF-8 are replaced.
    """
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace").strip()
    text = json.dumps(raw, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def settle(
    report: Report, num_new: int, on_bad_row: OnBadRow, bad_rows_path: str | Path | None
) -> None:
    """Raises RowsError if there are bad rows and none may be skipped, or writes them to a file.

    Args:
      report: the report with all problems so far.
      num_new: the number of new problems, which are the last ones of the report.
      on_bad_row: "fail" or "skip".
      bad_rows_path: the file to which "skip" writes all problems, as JSON lines; None = no file.

    Raises:
      RowsError: if there is a new problem and `on_bad_row` is "fail", or no row is left.
      ValueError: if `on_bad_row` is neither "fail" nor "skip".
    """
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"on_bad_row expects 'fail' or 'skip', found {on_bad_row!r}")
    if num_new and on_bad_row == "fail":
        others = f"\n{num_new - 1} more rows are bad." if num_new > 1 else ""
        first = report.problems[-num_new]
        raise RowsError(f"{first}{others}{SKIP_ADVICE}")
    if bad_rows_path is not None:
        write_json_lines(bad_rows_path, (problem._asdict() for problem in report.problems))
    if not report.kept:
        first_bad = f"; the first: {report.problems[0]}" if report.problems else ""
        raise RowsError(f"of {report.read} rows no good one is left{first_bad}")
