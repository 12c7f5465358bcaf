"""Takes in answers that were given elsewhere: files of preferences, and other answer files."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.answers import mismatch, read_events, readable_events
from shatter.cli.label.confirmed import confirmed_file
from shatter.cli.label.events import Event
from shatter.cli.label.merging import IncomingEvent, merge
from shatter.cli.label.queries import (
    AUDIT,
    TextQuery,
    is_audit,
    read_queries,
    write_queries,
)
from shatter.cli.label.writer import Writer
from shatter.data import Row, pair_labels, read_rows
from shatter.data.files import records
from shatter.data.layouts import parsed, shown
from shatter.data.report import BadRow, OnBadRow, Problem

NOBODY = "import"  # the annotator of a row that names none


class Imported(NamedTuple):
    """The counts of an import.

    Attributes:
      num_queries: comparisons that were in no query file.
      num_answers: answers, skips and undos that were not in the answer file.
      num_known: those that were in it already.
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
    """Adds the answers of a file of preferences, or the events of an answer file, to a project.

    A comparison is identified by its texts: rows about the same completions of the same prompt, in
    whatever order and file, answer one query, which may be one that was proposed here. Comparisons
    that are in no query file go to `import_<sha8>.jsonl` with ids `import-<sha8>-<line>`, where
    sha8 is the start of the file's sha256.

    An answer is identified by what it says, who says it and when. Whatever was exported from here,
    or imported before, is therefore not added again (`merging.merge`). A named annotator has one
    answer to a comparison. Rows that name nobody, and votes, count as often as they are in the
    file. Two people who leave no name and say the same in two files are taken for one; to tell them
    apart, give each file an `annotator`.

    Args:
      path: a file in any layout of `shatter.data.read_rows`, where completions labelled true or
        false are compared within their prompt; or an answer file. The folder `queries` of its
        project must be beside an answer file unless it is about queries of this project.
      folder: the folder of the query files.
      writer: the writer of the answer file.
      annotator: the annotator of rows that name nobody.
      on_bad_row: "fail" = raise an error that names the first bad row or damaged line; "skip" =
        leave them out.

    Returns:
      The counts.

    Raises:
      UsageError: if a row is bad and `on_bad_row` is "fail", or no good row is left. Nothing is
        added then.
    """
    annotator, path, folder = asking.annotator_name(annotator), Path(path), Path(folder)
    known = read_queries(folder) if any(folder.glob("*.jsonl")) else {}
    if is_answer_file(path):
        incoming, problems = _from_answer_file(path, known, on_bad_row)
    else:
        incoming, problems = _from_rows(path, annotator)
    sha8 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    merged = merge(incoming, known, writer.events, sha8)
    problems += merged.problems
    if problems and on_bad_row == "fail":
        raise UsageError(
            f"{problems[0]}\n{len(problems)} rows are bad; --on_bad_row=skip leaves them out"
        )
    if not incoming:
        raise UsageError(f"{path}: none of its rows is a comparison that can be used")
    if merged.queries:
        write_queries(_free_file(folder, sha8), merged.queries)
    writer.append(*merged.events)
    return Imported(
        len(merged.queries),
        len(merged.events),
        len(incoming) - len(merged.events) - len(merged.problems),
        tuple(problems),
    )


def is_answer_file(path: str | Path) -> bool:
    """Returns whether a file has a note of an answer file beside it, or begins with an event."""
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


def _from_answer_file(
    path: Path, known: Mapping[str, TextQuery], on_bad_row: OnBadRow
) -> tuple[list[IncomingEvent], list[Problem]]:
    """Returns the events of an answer file with their texts, and those that cannot be used."""
    if path.suffix == ".gz":
        raise UsageError(f"{path}: expected an answer file as it was written: decompress it first")
    problems: list[Problem] = []
    if on_bad_row == "skip":
        events, problems = readable_events(path)
    else:
        events = read_events(path)
    beside = path.parent / "queries"
    has_own = any(beside.glob("*.jsonl"))
    queries = read_queries(beside) if has_own else known
    incoming = []
    for event in events:
        query = queries.get(event.query_id)
        bad = mismatch(event, queries) if event.undoes is None else None
        is_unsure = not has_own and event.texts is None and event.undoes is None
        if bad is None and is_unsure:
            # A query of the same id may be another project's.
            mend = f"put the folder queries of its project beside {path}"
            bad = BadRow("texts", "the checksum of the texts that it is about", "none", mend)
        if bad is not None:
            problems.append(Problem(event.source, "", *bad.args))
        elif query is not None:
            arm = AUDIT if is_audit(query) else "import"
            texts = query.prompt, query.completions
            incoming.append(IncomingEvent(event, *texts, query.last_turn, arm))
    return incoming, problems


def _from_rows(path: Path, nobody: str) -> tuple[list[IncomingEvent], list[Problem]]:
    """Returns the rows of a file that compare at least two completions, and the bad rows."""
    try:
        rows, report = read_rows(path, on_bad_row="skip")
        exported = _exported_fields(path)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--file: {error}") from error
    rows, paired = pair_labels(rows)
    incoming, problems = [], [*report.problems, *paired.problems]
    for row in rows:
        try:
            fields = exported.get(row.source, _Exported())
            incoming.append(_incoming_row(row, nobody, fields))
        except BadRow as error:
            problems.append(Problem(row.source, "", *error.args))
    return incoming, problems


class _Exported(NamedTuple):
    """The fields that `export` adds to a row: its time, and whether it is of many, or an audit."""

    time: str = ""
    of_many: bool = False
    audit: bool = False


def _exported_fields(path: Path) -> dict[str, _Exported]:
    """Returns the fields that `export` adds to rows, by "file:line"."""
    found = {}
    for number, raw in records(path):
        try:
            record = parsed(raw)
        except BadRow:
            continue  # the reader of rows names it
        of_many, audit = (record.get(name) is True for name in ("of_many", "audit"))
        found[f"{path}:{number}"] = _Exported(_time_in(record.get("time")), of_many, audit)
    return found


def _time_in(value: Any) -> str:
    """Returns a field's time; "" if the field means something else."""
    try:
        return value if isinstance(value, str) and datetime.fromisoformat(value) else ""
    except ValueError:
        return ""


def _incoming_row(row: Row, nobody: str, exported: _Exported) -> IncomingEvent:
    """Returns a row as an answer.

    Raises:
      BadRow: if it compares fewer than two completions, or its annotator has no proper name.
    """
    ranked = [k for k, rank in enumerate(row.ranks) if rank >= 0]
    if len(ranked) < 2:
        raise BadRow("completions", "two completions that were shown, or more", f"{len(ranked)}")
    try:
        annotator = asking.annotator_name(row.annotator or nobody)
    except UsageError as error:
        expected = f"a name of 1 to {asking.MAX_NAME} printable characters"
        raise BadRow("annotator", expected, shown(row.annotator)) from error
    of_many = exported.of_many or row.annotator is None or row.votes is not None
    event = Event(
        "answer",
        "import-row" if of_many else "row",  # merging replaces it by an id of its own
        "",
        annotator,
        tuple(row.ranks[k] for k in ranked),
        row.weight,
        time="" if of_many else exported.time,
        source=row.source,
    )
    completions = tuple(row.completions[k] for k in ranked)
    arm = AUDIT if exported.audit else "import"
    return IncomingEvent(event, row.prompt, completions, row.last_turn, arm)
