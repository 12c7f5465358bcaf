"""Comparisons, rankings, votes, labels and demonstrations as text, read and written."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shatter.data.files import json_line, records, write_atomically
from shatter.data.layouts import LAYOUTS, Text, answers_of, parsed, text_key
from shatter.data.report import BadRow, OnBadRow, Problem, Report, settle


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
    """

    prompt: Text
    completions: tuple[Text, ...]
    ranks: tuple[int, ...]
    weight: float = 1.0
    annotator: str | None = None
    group: str | None = None
    source: str = ""
    votes: tuple[float, ...] | None = None


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
      ValueError: if the file is none of these.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    num_read = num_implicit = 0
    for number, raw in records(path):
        num_read += 1
        source = f"{path}:{number}"
        try:
            prompt, completions, answers, votes, about, is_implicit = answers_of(parsed(raw))
        except BadRow as error:
            line = raw if isinstance(raw, bytes) else json_line(raw)
            problems.append(Problem(source, line.decode("utf-8", "replace").strip(), *error.args))
            continue
        num_implicit += is_implicit
        for ranks, weight in answers:
            rows.append(Row(prompt, completions, ranks, weight, *about, source, votes))
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
      ValueError: if the name ends otherwise.
    """
    write_atomically(path, b"".join(json_line(record_of(row)) for row in rows))


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
    return {name: value for name, value in record.items() if value is not None}


def pair_labels(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Makes comparisons of labelled completions: those of one prompt, true above false.

    Args:
      rows: rows of a single labelled completion (ranks `(1,)` or `(2,)`); others pass unchanged.

    Returns:
      One row a prompt that has both labels, at the place of its first row, and the report: a
      completion labelled both ways and every row of a prompt with one label only is a problem.
    """
    prompts: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        key = text_key(row.prompt) if row.ranks in ((1,), (2,)) else str(number)
        prompts.setdefault(key, []).append(row)
    paired: list[Row] = []
    bad: list[tuple[Row, str]] = []
    for same in prompts.values():
        if same[0].ranks not in ((1,), (2,)):
            paired += same
            continue
        labels: dict[str, set[int]] = {}
        for row in same:
            labels.setdefault(text_key(row.completions[0]), set()).add(row.ranks[0])
        torn = [row for row in same if len(labels[text_key(row.completions[0])]) > 1]
        bad += [(row, "both labels on one completion") for row in torn]
        clear = {text_key(row.completions[0]): row for row in same if row not in torn}
        if len({row.ranks for row in clear.values()}) == 2:
            paired.append(_joined(list(clear.values())))
        else:
            bad += [(row, f"no completion labelled {row.ranks == (2,)}") for row in clear.values()]
    expected = "completions of one prompt labelled true and others labelled false"
    problems = [
        Problem(row.source, json_line(record_of(row)).decode().strip(), "label", expected, found)
        for row, found in bad
    ]
    return paired, Report(len(rows), len(paired), len(bad), problems=tuple(problems))


def _joined(rows: Sequence[Row]) -> Row:
    """Several labelled completions of one prompt as one row."""
    first = rows[0]
    return first._replace(
        completions=tuple(row.completions[0] for row in rows),
        ranks=tuple(row.ranks[0] for row in rows),
        annotator=first.annotator if len({row.annotator for row in rows}) == 1 else None,
        group=first.group if len({row.group for row in rows}) == 1 else None,
    )
