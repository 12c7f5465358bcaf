"""Answers that were given elsewhere: files of preferences become queries and events."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from experiments.common.binary import UsageError
from experiments.label import asking
from experiments.label.answers import Asked, Event, read_queries, write_queries
from experiments.label.writer import Writer
from shatter.data import Row, pair_labels, read_rows
from shatter.data.layouts import Text, text_key
from shatter.data.report import OnBadRow, Problem

NOBODY = "import"  # the annotator of a row that names none


class Imported(NamedTuple):
    """What an import has added.

    Attributes:
      num_queries: comparisons that no query file had.
      num_answers: answers that the answer file did not have.
      num_known: answers that it had already.
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
    """Adds the answers of a file of preferences.

    A comparison is known by its texts: rows about the same completions of the same prompt, in
    whatever order and file, answer one query, be it one that was proposed here. Comparisons that no
    query file has go to `import_<sha8>.jsonl` with ids `import-<sha8>-<line>`, sha8 being the start
    of the file's sha256. An answer is known by what it says and who says it: of a file that was
    imported before only what is new is added, and nobody's answer counts twice. Two people who
    leave no name and say the same in two files are one: give each file an `annotator`.

    Args:
      path: a file in any layout of `shatter.data.read_rows`; completions labelled true or false
        are compared within their prompt.
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
    rows, problems = _comparisons(path, on_bad_row)
    sha8 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = read_queries(folder) if any(folder.glob("*.jsonl")) else {}
    queries: dict[str, Asked] = {}
    for query in known.values():
        queries.setdefault(_comparison_key(query.prompt, query.completions), query)
    num_before, said, events = len(queries), Counter[str](), []
    for row in rows:
        query = queries.setdefault(_comparison_key(row.prompt, row.completions), _query(row, sha8))
        event = _event(row, query, annotator)
        said[event.event_id] += 1
        if said[event.event_id] > 1:  # the same person said so before
            event = event._replace(event_id=f"{event.event_id}-{said[event.event_id]}")
        events.append(event)
    new = list(queries.values())[num_before:]
    if new:
        write_queries(folder / f"import_{sha8}.jsonl", new)
    num_answers = writer.append(*events)
    return Imported(len(new), num_answers, len(events) - num_answers, tuple(problems))


def _comparisons(path: Path, on_bad_row: OnBadRow) -> tuple[list[Row], list[Problem]]:
    """The rows of a file with two or more completions that were shown, and no others."""
    try:
        rows, report = read_rows(path, on_bad_row=on_bad_row)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    rows, paired = pair_labels(rows)
    problems = [*report.problems, *paired.problems]
    kept = []
    for row in rows:
        shown = [k for k, rank in enumerate(row.ranks) if rank >= 0]
        if len(shown) > 1:
            completions = tuple(row.completions[k] for k in shown)
            ranks = tuple(row.ranks[k] for k in shown)
            kept.append(row._replace(completions=completions, ranks=ranks))
            continue
        expected, found = "two completions that were shown, or more", f"{len(shown)}"
        problems.append(Problem(row.source, "", "completions", expected, found))
    if problems and on_bad_row == "fail":
        raise UsageError(
            f"{problems[0]}\n{len(problems)} rows are bad; on_bad_row=skip leaves them out"
        )
    if not kept:
        raise UsageError(f"{path}: of {report.read} rows none is a comparison")
    return kept, problems


def _comparison_key(prompt: Text, completions: tuple[Text, ...]) -> str:
    return json.dumps([text_key(prompt), sorted(map(text_key, completions))])


def _query(row: Row, sha8: str) -> Asked:
    return Asked(
        f"import-{sha8}-{row.source.rpartition(':')[2]}",
        row.prompt,
        row.completions,
        round="import",
        arm="import",
    )


def _event(row: Row, query: Asked, nobody: str) -> Event:
    """The answer of a row, with its ranks in the order of the query's completions."""
    annotator = (row.annotator or "").strip() or nobody
    rank_of = {text_key(text): rank for text, rank in zip(row.completions, row.ranks, strict=True)}
    what = [text_key(row.prompt), sorted(rank_of.items()), row.weight, annotator]
    return Event(
        "answer",
        f"import-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}",
        query.query_id,
        annotator,
        ranks=tuple(rank_of[text_key(text)] for text in query.completions),
        weight=row.weight,
        time=asking.now(),
    )
