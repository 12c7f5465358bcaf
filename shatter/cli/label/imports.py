"""Answers that were given elsewhere: files of preferences, and answer files of this program."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.answers import Event, read_events, stranger
from shatter.cli.label.confirmed import confirmed_file
from shatter.cli.label.merging import Given, merge
from shatter.cli.label.queries import Asked, read_queries, write_queries
from shatter.cli.label.writer import Writer
from shatter.data import Row, pair_labels, read_rows
from shatter.data.files import records
from shatter.data.layouts import parsed, shown
from shatter.data.report import BadRow, OnBadRow, Problem

NOBODY = "import"  # the annotator of a row that names none


class Imported(NamedTuple):
    """What an import has added.

    Attributes:
      num_queries: comparisons that no query file had.
      num_answers: answers, skips and undos that the answer file did not have.
      num_known: those that it had already.
      problems: rows left out.
    """

    num_queries: int
    num_answers: int
    num_known: int
    problems: tuple[Problem, ...]


def import_answers(
    path: str | Path,
    folder: str | Path,
    writer: Writer,
    *,
    annotator: str = NOBODY,
    on_bad_row: OnBadRow = "fail",
) -> Imported:
    """Adds the answers of a file of preferences, or the events of an answer file.

    A comparison is known by its texts: rows about the same completions of the same prompt, in
    whatever order and file, answer one query, be it one that was proposed here. Comparisons that no
    query file has go to `import_<sha8>.jsonl` with ids `import-<sha8>-<line>`, sha8 being the start
    of the file's sha256.

    An answer is known by what it says, who says it and when, by whatever road it came: what was
    exported, or imported before, is not added again (`merging.merge`). A named annotator has one
    answer to a comparison. Rows that name nobody, and votes, count as often as they are in the
    file; two people who leave no name and say the same in two files are one: give each file an
    `annotator`.

    Args:
      path: a file in any layout of `shatter.data.read_rows`, where completions labelled true or
        false are compared within their prompt; or an answer file, with its `queries` beside it
        unless it is about queries of this project.
      folder: the folder of the query files.
      writer: where answers go.
      annotator: whose the rows are that name nobody.
      on_bad_row: "fail" = raise, naming the first bad row; "skip" = leave bad rows out.

    Returns:
      What was added.

    Raises:
      UsageError: if a row is bad and `on_bad_row` is "fail", or no good row is left. Nothing is
        added then.
    """
    annotator, path, folder = asking.annotator_name(annotator), Path(path), Path(folder)
    known = read_queries(folder) if any(folder.glob("*.jsonl")) else {}
    if is_answer_file(path):
        given, problems = _given_events(path, known)
    else:
        given, problems = _given_rows(path, annotator)
    sha8 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    merged = merge(given, known, writer.events, sha8)
    problems += merged.problems
    if problems and on_bad_row == "fail":
        raise UsageError(
            f"{problems[0]}\n{len(problems)} rows are bad; --on_bad_row=skip leaves them out"
        )
    if not given:
        raise UsageError(f"{path}: of its rows none is a comparison that can be used")
    if merged.queries:
        write_queries(_free_file(folder, sha8), merged.queries)
    writer.append(*merged.events)
    return Imported(
        len(merged.queries),
        len(merged.events),
        len(given) - len(merged.events) - len(merged.problems),
        tuple(problems),
    )


def is_answer_file(path: str | Path) -> bool:
    """Returns whether a file begins with an event of this program, or once did."""
    if confirmed_file(path).exists():
        return True
    try:
        _, first = next(iter(records(path)), (0, {}))
        return {"event", "event_id"} <= parsed(first).keys()
    except (BadRow, OSError, ValueError, ImportError):
        return False  # the reader of rows says what is wrong


def _free_file(folder: Path, sha8: str) -> Path:
    """Returns the first name for new queries that no earlier import of the same file has taken."""
    names = (f"import_{sha8}{f'_{n}' if n else ''}.jsonl" for n in range(10**6))
    return next(folder / name for name in names if not (folder / name).exists())


def _given_events(path: Path, known: Mapping[str, Asked]) -> tuple[list[Given], list[Problem]]:
    """Returns the events of an answer file with their texts; those about nothing known are bad."""
    if path.suffix == ".gz":
        raise UsageError(f"{path}: expected an answer file as it was written: decompress it first")
    events, beside = read_events(path), path.parent / "queries"
    has_own = any(beside.glob("*.jsonl"))
    queries = read_queries(beside) if has_own else known
    given, problems = [], []
    for event in events:
        query = queries.get(event.query_id)
        bad = stranger(event, queries) if event.undoes is None else None
        is_unsure = not has_own and event.texts is None and event.undoes is None
        if bad is None and is_unsure:
            # A query of the same name may be another project's.
            mend = f"put the folder queries of its project beside {path}"
            bad = BadRow("texts", "the checksum of what it is about", "none", mend)
        if bad is not None:
            problems.append(Problem(event.source, "", *bad.args))
        elif query is not None:
            given.append(Given(event, query.prompt, query.completions))
    return given, problems


def _given_rows(path: Path, nobody: str) -> tuple[list[Given], list[Problem]]:
    """Returns the rows of a file with two or more completions that were shown, as events."""
    try:
        rows, report = read_rows(path, on_bad_row="skip")
        about = _about(path)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--file: {error}") from error
    rows, paired = pair_labels(rows)
    given, problems = [], [*report.problems, *paired.problems]
    for row in rows:
        try:
            given.append(_given_row(row, nobody, *about.get(row.source, ("", False))))
        except BadRow as error:
            problems.append(Problem(row.source, "", *error.args))
    return given, problems


def _about(path: Path) -> dict[str, tuple[str, bool]]:
    """Returns what `export` adds to rows, by source: the time, and whether of many people."""
    about = {}
    for number, raw in records(path):
        try:
            record = parsed(raw)
        except BadRow:
            continue  # the reader of rows names it
        time, of_many = _time_of(record.get("time")), record.get("of_many") is True
        if of_many or time:
            about[f"{path}:{number}"] = (time, of_many)
    return about


def _time_of(given: Any) -> str:
    """Returns a time; empty if a field of this name means something else."""
    try:
        return given if isinstance(given, str) and datetime.fromisoformat(given) else ""
    except ValueError:
        return ""


def _given_row(row: Row, nobody: str, time: str, of_many: bool) -> Given:
    shown_ones = [k for k, rank in enumerate(row.ranks) if rank >= 0]
    if len(shown_ones) < 2:
        expected = "two completions that were shown, or more"
        raise BadRow("completions", expected, f"{len(shown_ones)}")
    try:
        annotator = asking.annotator_name(row.annotator or nobody)
    except UsageError as error:
        expected = f"a name of 1 to {asking.MAX_NAME} printable characters"
        raise BadRow("annotator", expected, shown(row.annotator)) from error
    of_many = of_many or row.annotator is None or row.votes is not None
    event = Event(
        "answer",
        "import-row" if of_many else "row",  # merging gives it a name of its own
        "",
        annotator,
        tuple(row.ranks[k] for k in shown_ones),
        row.weight,
        time="" if of_many else time,
        source=row.source,
    )
    return Given(event, row.prompt, tuple(row.completions[k] for k in shown_ones))
