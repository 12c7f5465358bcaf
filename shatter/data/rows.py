"""Comparisons, rankings, votes, labels and demonstrations as text, read and written."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shatter.data.files import records, write_json_lines
from shatter.data.layouts import LAYOUTS, answers_of, parsed
from shatter.data.report import BadRow, OnBadRow, Problem, Report, raw_text, settle
from shatter.data.texts import Text


class Row(NamedTuple):
    """What somebody said about completions of one prompt.

    Attributes:
      prompt: the text or conversation before the completions; may be empty.
      completions: K texts, or K conversations that end with the assistant.
      ranks: K ranks; smaller is better, equal = unresolved, < 0 = not shown. Of a single
        completion: 1 = labelled true, 2 = labelled false, 0 = a demonstration.
      weight: how much the answer counts: 1, or how many people gave it.
      annotator: who said so.
      group: the group of who said so.
      source: "file:line".
      votes: how many chose each completion, `[K]`, or `[K + 1]` with those who chose none, where
        the file has such counts; all rows made of one line share them.
      last_turn: of a conversation, whether the loss counts the last message of each completion
        alone, and not the turns before it.
    """

    prompt: Text
    completions: tuple[Text, ...]
    ranks: tuple[int, ...]
    weight: float = 1.0
    annotator: str | None = None
    group: str | None = None
    source: str = ""
    votes: tuple[float, ...] | None = None
    last_turn: bool = False


def read_rows(
    path: str | Path, *, on_bad_row: OnBadRow = "fail", bad_rows_path: str | Path | None = None
) -> tuple[list[Row], Report]:
    """Reads a file of preferences.

    The layout of a row is told by its fields:

    - `prompt, chosen, rejected`; without `prompt`, what both start with is the prompt;
    - `prompt, completion`, a demonstration; with `label`, true or false, a judgement;
    - `prompt, completions` with `ranks` (smaller is better, equal = unresolved, < 0 = not shown),
      or `ratings` (higher is better, null = not shown), or `votes`: how many chose each, and, one
      number more, how many chose none; votes make a row an answer, weighted by its count.

    Texts may be conversations, lists of messages {"role", "content"}. Every layout may hold
    `annotator`, `group` and `weight`; other fields are ignored, null is absent.

    Of a conversation without `prompt`, chosen and rejected may part before their last turn. What
    they have in common is the prompt all the same, but the loss counts only the last message of
    each, the assistant's: the turns before it answer to nobody's choice. With `prompt` it counts
    the whole completion. `last_turn`, true or false, says so for a row of any layout.

    Args:
      path: ends in .jsonl or .json (one object a line, UTF-8, with or without .gz) or .parquet.
      on_bad_row: "fail" = raise, naming the first bad row; "skip" = leave bad rows out.
      bad_rows_path: where "skip" writes the bad rows with their reasons, as JSON lines.

    Returns:
      The rows, in order, and the report.

    Raises:
      DataError: if a row is bad and `on_bad_row` is "fail", or no good row is left.
      FileNotFoundError: if there is no such file.
      ImportError: if the file is a parquet table and pyarrow is not installed.
      ValueError: if it is none of these, may not be read, or is a damaged archive or table.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    num_read = num_implicit = 0
    for number, raw in records(path):
        num_read += 1
        source = f"{path}:{number}"
        try:
            found = answers_of(parsed(raw))
        except BadRow as error:
            problems.append(Problem(source, raw_text(raw), *error.args))
            continue
        num_implicit += found.is_implicit
        for ranks, weight in found.answers:
            about = *found.about, source, found.votes, found.last_turn
            rows.append(Row(found.prompt, found.completions, ranks, weight, *about))
    if not num_read:
        problems.append(Problem(str(path), "", "file", "at least one row", "none", LAYOUTS))
    report = Report(num_read, len(rows), len(problems), num_implicit, problems=tuple(problems))
    settle(report, len(problems), on_bad_row, bad_rows_path)
    return rows, report


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes rows so that `read_rows` gives them back (with another source), all or nothing.

    A strict pair becomes prompt, chosen, rejected; everything else prompt, completions, ranks.

    Args:
      path: the file, ending in .jsonl or .jsonl.gz.
      rows: the rows.

    Raises:
      ValueError: if the name ends otherwise, or a number is NaN or infinite.
    """
    write_json_lines(path, map(record_of, rows))


def record_of(row: Row) -> dict[str, Any]:
    """The object that reads as this row.

    Args:
      row: the row.

    Returns:
      The object, for one line of JSON.
    """
    record: dict[str, Any] = {"prompt": row.prompt}
    if row.ranks == (1, 2) and row.votes is None:
        record |= {"chosen": row.completions[0], "rejected": row.completions[1]}
    else:
        record |= {"completions": row.completions, "ranks": row.ranks, "votes": row.votes}
    record |= {"weight": None if row.weight == 1 else row.weight}
    record |= {"annotator": row.annotator, "group": row.group}
    record |= {"last_turn": row.last_turn or None}
    return {name: value for name, value in record.items() if value is not None}
