"""Reads and writes comparisons, rankings, votes, labels and demonstrations as text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shatter.data.files import records, write_json_lines
from shatter.data.layouts import LAYOUTS, answers_of, parsed
from shatter.data.report import BadRow, OnBadRow, Problem, Report, raw_text, settle
from shatter.data.texts import Text


class Row(NamedTuple):
    """An answer of somebody about completions of one prompt.

    Attributes:
      prompt: the text or conversation before the completions; may be empty.
      completions: K texts, or K conversations that end with the assistant.
      ranks: K ranks; smaller is better, equal = unresolved, < 0 = not shown. The ranks of a single
        completion are `LABELLED_TRUE`, `LABELLED_FALSE` or `DEMONSTRATED`.
      weight: how much the answer counts: 1, or the number of people who gave it.
      annotator: the name of the person.
      group: the group of the person.
      source: "file:line".
      votes: how many people chose each completion, `[K]`, or `[K + 1]` with those who chose none,
        if the file has such counts; all rows made from one line share them.
      last_turn: whether the loss counts only the last message of each completion, a conversation,
        and not the turns before it.
      origin: the row that this row was made from to say who answers. Prompts that are too long lose
        their beginning, but if it says who answers (the origin's prompt is another) the row is bad.
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
    origin: "Row | None" = None


def read_rows(
    path: str | Path, *, on_bad_row: OnBadRow = "fail", bad_rows_path: str | Path | None = None
) -> tuple[list[Row], Report]:
    """Reads a file of preferences.

    The fields of a row tell its layout:

    - `prompt, chosen, rejected`; without `prompt`, it is the text that both start with;
    - `prompt, completion`, a demonstration; with `label`, true or false, a judgement;
    - `prompt, completions` with one of `ranks` (smaller is better, equal = unresolved, < 0 = not
      shown), `ratings` (higher is better, null = not shown) and `votes`. Votes are how many people
      chose each completion and, as an optional last number, how many chose none; they become one
      row for every answer that was given, weighted by its count.

    Texts may be conversations, lists of messages {"role", "content"}. Rows of every layout may have
    `annotator`, `group` and `weight`. Other fields are ignored, and null is the same as absent.

    If conversations without `prompt` differ before their last turn, their prompt is still what they
    have in common, but the loss counts only the last message of each: nobody chose between the
    turns before it. With `prompt` the loss counts the whole completion. The field `last_turn`, true
    or false, overrides this in any layout.

    Example:
      >>> import tempfile
      >>> from shatter import data
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = f"{folder}/pairs.jsonl"
      ...     data.write_rows(path, [data.Row("The sky is", (" blue.", " green."), (1, 2))])
      ...     rows, report = data.read_rows(path)
      >>> rows[0].completions, rows[0].ranks, report.kept
      ((' blue.', ' green.'), (1, 2), 1)

    Args:
      path: the file, ending in .jsonl or .json (one object a line, UTF-8, with or without .gz) or
        .parquet.
      on_bad_row: "fail" raises RowsError with the first bad row; "skip" leaves bad rows out.
      bad_rows_path: the file to which "skip" writes the bad rows with the reasons, as JSON lines.

    Returns:
      The rows, in order, and the report.

    Raises:
      RowsError: if a row is bad and `on_bad_row` is "fail", or no good row is left.
      FileNotFoundError: if there is no such file.
      ImportError: if the file is a parquet table and pyarrow is missing.
      ValueError: if the file has another ending, may not be read, or is a damaged archive or table.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    num_read = num_implicit = 0
    for number, raw in records(path):
        num_read += 1
        source = f"{path}:{number}"
        try:
            answers = answers_of(parsed(raw))
        except BadRow as error:
            problems.append(Problem(source, raw_text(raw), *error.args))
            continue
        num_implicit += answers.is_implicit
        for ranks, weight in answers.answers:
            about = *answers.about, source, answers.votes, answers.last_turn
            rows.append(Row(answers.prompt, answers.completions, ranks, weight, *about))
    if not num_read:
        problems.append(Problem(str(path), "", "file", "at least one row", "none", LAYOUTS))
    report = Report(num_read, len(rows), len(problems), num_implicit, problems=tuple(problems))
    settle(report, len(problems), on_bad_row, bad_rows_path)
    return rows, report


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes rows so that `read_rows` reads them back, with another source.

    A pair without a tie is written as prompt, chosen, rejected, and any other row as prompt,
    completions, ranks. The file is replaced whole or stays as it was.

    Args:
      path: the file, ending in .jsonl or .jsonl.gz.
      rows: the rows.

    Raises:
      ValueError: if the name has another ending, or a number is NaN or infinite.
    """
    write_json_lines(path, map(record_of, rows))


def record_of(row: Row) -> dict[str, Any]:
    """Returns the JSON object that `read_rows` reads as a row.

    Args:
      row: the row.
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
