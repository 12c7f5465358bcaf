"""Queries put to people: JSON lines that are never written over."""

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
}  # what the fields of a query file that may be left out hold


class Asked(NamedTuple):
    """A query: K completions of one prompt, of which the best is asked for.

    Attributes:
      query_id: its name, unique among all query files.
      prompt: a text or a conversation.
      completions: K texts or conversations.
      prompt_id: number of the prompt in the pool; -1 = of no pool.
      item_ids: `[K]`, numbers of the completions in the pool; empty = of no pool.
      round: the round it was proposed in; "import" if somebody else asked it.
      arm: how it was chosen.
      score: by what it was chosen, in the units of the arm.
      model: sha256 of the model that chose.
      seed: seed of the run that proposed it.
      budget: number of queries of its round.
      source: "file:line"; not written.
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


def read_queries(path: str | Path) -> dict[str, Asked]:
    """Reads queries.

    Args:
      path: a query file, or a folder: all its .jsonl files in the order of their names.

    Returns:
      The queries by their id, in order.

    Raises:
      UsageError: if there is no file, a line is bad, or an id comes twice.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UsageError(f"expected query files (.jsonl) at {path}, found none: propose some first")
    queries: dict[str, Asked] = {}
    for file in files:
        for query in _queries_of(file):
            if query.query_id in queries:
                found = f"{query.query_id!r} again, as in {queries[query.query_id].source}"
                mend = "remove one of the two"
                raise usage_error(
                    query.source, BadRow("query_id", "a name of its own", found, mend)
                )
            queries[query.query_id] = query
    return queries


def write_queries(path: str | Path, queries: Iterable[Asked]) -> None:
    """Writes queries, all or nothing; a file that holds just them already is left as it is.

    Args:
      path: the file, ending in .jsonl; its folder is made where it is missing.
      queries: the queries.

    Raises:
      UsageError: if the file exists with other content.
      ValueError: if a query would not be read back, a numpy number in it for example.
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
    """Returns a hash of what somebody was asked about, in the order in which it is given.

    Args:
      prompt: the prompt.
      completions: the completions, in an order that counts.

    Returns:
      sha256 of their texts, in hexadecimal.
    """
    texts = json.dumps([prompt, list(completions)], sort_keys=True)
    return hashlib.sha256(texts.encode()).hexdigest()


def usage_error(source: str, error: BadRow) -> UsageError:
    """Returns the error of a line."""
    return UsageError(str(Problem(source, "", *error.args)))


def _queries_of(file: Path) -> list[Asked]:
    """Reads one query file."""
    found = []
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
                found.append(_query(parsed(raw), f"{file}:{number}"))
            except BadRow as error:
                raise usage_error(f"{file}:{number}", error) from None
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if not found:
        raise UsageError(
            f"{file}: expected queries, found none: put the file back, or delete it if nobody has "
            "answered them"
        )
    return found


def _query(record: dict[str, Any], source: str) -> Asked:
    """Reads one line of a query file."""
    for field in ("query_id", "prompt", "completions"):
        if field not in record:
            found = f"the fields {', '.join(sorted(record)) or '(none)'}"
            raise BadRow(field, "this field", found)
    given = record["completions"]
    if not isinstance(given, list) or len(given) < 2:
        raise BadRow("completions", "a list of at least two", shown(given))
    texts = {"prompt": record["prompt"], "completions": given, "ranks": [1] * len(given)}
    prompt, completions, *_ = answers_of(texts)
    item_ids = record.get("item_ids", [])
    if item_ids != [] and not are_whole(item_ids, len(given)):
        expected = f"{len(given)} whole numbers, one a completion"
        raise BadRow("item_ids", expected, shown(item_ids))
    others: dict[str, Any] = {}
    for field, (kind, expected) in _KINDS.items():
        if field in record:
            others[field] = record[field]
            if not isinstance(record[field], kind) or isinstance(record[field], bool):
                raise BadRow(field, expected, shown(record[field]))
            if isinstance(record[field], str) and record[field]:
                name_in(record, field)
    query_id = name_in(record, "query_id")
    return Asked(query_id, prompt, completions, item_ids=tuple(item_ids), source=source, **others)


def _query_record(query: Asked) -> dict[str, Any]:
    record = query._asdict()
    del record["source"]
    return record


def name_in(record: dict[str, Any], field: str) -> str:
    """Returns a field that holds a name.

    Args:
      record: the object of a line.
      field: the field.

    Returns:
      The name: a text that is not empty and that UTF-8 can hold.

    Raises:
      BadRow: if it is none.
    """
    name = record.get(field)
    if not isinstance(name, str) or not name.strip():
        raise BadRow(field, "a text that is not empty", shown(name))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair at character {error.start}"
        raise BadRow(field, "text that UTF-8 can hold", found) from error
    return name


def are_whole(values: Any, num: int | None = None) -> bool:
    """Returns whether it is a list of whole numbers, of a certain length if one is given."""
    return (
        isinstance(values, list)
        and len(values) == (len(values) if num is None else num)
        and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    )
