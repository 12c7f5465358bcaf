"""Queries that are put to people: files of JSON lines that are never overwritten."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shatter.cli.common import checksums
from shatter.cli.common.binary import UsageError
from shatter.data.atomic import write_atomically
from shatter.data.files import json_line, records
from shatter.data.layouts import Text, answers_of, parsed, shown
from shatter.data.report import BadRow, Problem

_WHOLE = (int,), "a whole number"
_TEXT = (str,), "a text"
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt_id": _WHOLE,
    "round": ((int, str), "a whole number, or a name"),
    "arm": _TEXT,
    "score": ((int, float), "a number"),
    "model": _TEXT,
    "seed": _WHOLE,
    "budget": _WHOLE,
}  # the types of the optional fields of a query file

AUDIT = "audit"
"""The arm of a query that was drawn at random and is kept apart: nobody learns from its answers."""


class TextQuery(NamedTuple):
    """A query as people see it: K completions of one prompt, of which they choose the best.

    Attributes:
      query_id: its id, unique among all query files.
      prompt: a text or a conversation.
      completions: K texts or conversations.
      prompt_id: the number of the prompt in the pool; -1 = it is not of the pool.
      item_ids: `[K]`, the numbers of the completions in the pool; empty = they are not of the pool.
      round: the round in which it was proposed; "import" if it was imported.
      arm: the name of the arm that chose it; `AUDIT` = it was drawn at random and is kept apart.
      score: the expected information of its answer about which member is right, nats, whatever the
        arm.
      model: sha256 of the model that chose it.
      seed: the seed of the project that proposed it.
      budget: the number of queries of its round.
      source: "file:line" that it was read from; not written.
      last_turn: whether the choice was about the last message of each completion alone, as in
        `shatter.data.Row`; written where it is true.
    """

    query_id: str
    prompt: Text
    completions: tuple[Text, ...]
    prompt_id: int = -1
    item_ids: tuple[int, ...] = ()
    round: int | str = 0
    arm: str = ""
    score: float = 0.0
    model: str = ""
    seed: int = 0
    budget: int = 0
    source: str = ""
    last_turn: bool = False


def is_audit(query: TextQuery) -> bool:
    """Returns whether a query is kept apart to measure the members by."""
    return query.arm == AUDIT


def read_queries(path: str | Path) -> dict[str, TextQuery]:
    """Reads queries.

    Args:
      path: a query file, or a folder, of which all .jsonl files are read in the order of their
        names.

    Returns:
      The queries by their id, in order.

    Raises:
      UsageError: if there is no file, a line is bad, or an id comes twice.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UsageError(
            f"expected query files (.jsonl) at {path}, found none: propose queries first"
        )
    queries: dict[str, TextQuery] = {}
    for file in files:
        for query in _queries_of(file):
            if query.query_id in queries:
                other = f"{query.query_id!r} again, as in {queries[query.query_id].source}"
                bad = BadRow("query_id", "a name of its own", other, "remove one of the two")
                raise usage_error(query.source, bad)
            queries[query.query_id] = query
    return queries


def write_queries(path: str | Path, queries: Iterable[TextQuery]) -> None:
    """Writes a query file, whole or not at all; one that holds the same already stays as it is.

    Args:
      path: the file, ending in .jsonl; its folder is made if it is missing.
      queries: the queries.

    Raises:
      UsageError: if the file exists with other content.
      ValueError: if a query could not be read back, because it holds a numpy number for example.
    """
    path = Path(path)
    lines = [json_line(_query_record(query)) for query in queries]
    for number, line in enumerate(lines, start=1):
        try:
            _query(parsed(line), "")
        except BadRow as error:
            raise ValueError(str(usage_error(f"{path}:{number}", error))) from None
    content = b"".join(lines)
    if path.exists():
        if path.read_bytes() != content:
            raise UsageError(
                f"{path} holds other queries, which people may have answered: begin another "
                "--project, into which import takes the answers of this one"
            )
        return
    write_atomically(path, content)
    checksums.seal(path)


def texts_digest(prompt: Text, completions: Sequence[Text]) -> str:
    """Returns the sha256, in hexadecimal, of a prompt and its completions in the given order."""
    texts = json.dumps([prompt, list(completions)], sort_keys=True)
    return hashlib.sha256(texts.encode()).hexdigest()


def usage_error(source: str, error: BadRow) -> UsageError:
    """Returns the error to show for a bad line."""
    return UsageError(str(Problem(source, "", *error.args)))


def _queries_of(file: Path) -> list[TextQuery]:
    """Reads one query file."""
    queries = []
    try:
        checksums.verify(file)
    except UsageError as error:
        raise UsageError(
            f"{error}. Put the file back, or delete it if nobody has answered its queries; if you "
            f"have changed it yourself, delete {file}.sha256"
        ) from error
    try:
        for number, raw in records(file):
            try:
                queries.append(_query(parsed(raw), f"{file}:{number}"))
            except BadRow as error:
                raise usage_error(f"{file}:{number}", error) from None
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if not queries:
        raise UsageError(
            f"{file}: expected queries, found none: put the file back, or delete it if nobody has "
            "answered them"
        )
    return queries


def _query(record: dict[str, Any], source: str) -> TextQuery:
    """Returns the query of one line of a query file."""
    for field in ("query_id", "prompt", "completions"):
        if field not in record:
            fields = f"the fields {', '.join(sorted(record)) or '(none)'}"
            raise BadRow(field, "this field", fields)
    texts = record["completions"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise BadRow("completions", "a list of at least two", shown(texts))
    row = {"prompt": record["prompt"], "completions": texts, "ranks": [1] * len(texts)}
    answers = answers_of(row | {name: record[name] for name in ("last_turn",) if name in record})
    item_ids = record.get("item_ids", [])
    if item_ids != [] and not are_whole(item_ids, len(texts)):
        expected = f"{len(texts)} whole numbers, one a completion"
        raise BadRow("item_ids", expected, shown(item_ids))
    optional: dict[str, Any] = {}
    for field, (kind, expected) in _KINDS.items():
        if field in record:
            optional[field] = record[field]
            if not isinstance(record[field], kind) or isinstance(record[field], bool):
                raise BadRow(field, expected, shown(record[field]))
            if isinstance(record[field], str) and record[field]:
                name_in(record, field)
    return TextQuery(
        name_in(record, "query_id"),
        answers.prompt,
        answers.completions,
        item_ids=tuple(item_ids),
        source=source,
        last_turn=answers.last_turn,
        **optional,
    )


def _query_record(query: TextQuery) -> dict[str, Any]:
    record = query._asdict()
    del record["source"]
    if not query.last_turn:
        del record["last_turn"]
    return record


def name_in(record: dict[str, Any], field: str) -> str:
    """Returns a field that holds a name.

    Args:
      record: the object of a line.
      field: the field.

    Returns:
      The name: a text that is not empty and that UTF-8 can hold.

    Raises:
      BadRow: if the field holds something else.
    """
    name = record.get(field)
    if not isinstance(name, str) or not name.strip():
        raise BadRow(field, "a text that is not empty", shown(name))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at character {error.start}"
        raise BadRow(field, "text that UTF-8 can hold", problem) from error
    return name


def are_whole(values: Any, num: int | None = None) -> bool:
    """Returns whether a value is a list of whole numbers, of length `num` if that is given."""
    return (
        isinstance(values, list)
        and len(values) == (len(values) if num is None else num)
        and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    )
