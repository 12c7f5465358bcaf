"""Queries put to people, and the file of their answers, to which lines are only ever added.

Both are JSON lines. A line of a query file has the fields of `Asked`. A line of the answer file is
an event: an answer, a skip, or an undo of an earlier one of the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.binary import UsageError
from shatter.data.files import json_line, records, write_atomically
from shatter.data.layouts import Text, answers_of, parsed, shown
from shatter.data.report import BadRow, Problem

EVENTS = ("answer", "skip", "undo")

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


class Event(NamedTuple):
    """One line of the answer file.

    Attributes:
      event: one of `EVENTS`.
      event_id: its name, unique in the file.
      query_id: the query it is about.
      annotator: whose it is.
      ranks: of an answer, `[K]`: smaller is better, equal = unresolved.
      weight: of an answer: how much it counts.
      undoes: of an undo: the event_id of the answer or skip that it takes back.
      order: `[K]`: the completion shown at each place; None = unknown.
      seconds: from the showing to the key; None = unknown.
      time: when it was recorded, ISO 8601, UTC.
      source: "file:line"; not written.
    """

    event: str
    event_id: str
    query_id: str
    annotator: str
    ranks: tuple[int, ...] | None = None
    weight: float = 1.0
    undoes: str | None = None
    order: tuple[int, ...] | None = None
    seconds: float | None = None
    time: str = ""
    source: str = ""


class Answer(NamedTuple):
    """An answer that stands; the attributes are those of its `Event`."""

    event_id: str
    query_id: str
    annotator: str
    ranks: tuple[int, ...]
    weight: float = 1.0
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
        for number, raw in records(file):
            source = f"{file}:{number}"
            try:
                query = _query(parsed(raw), source)
                if query.query_id in queries:
                    found = f"{query.query_id!r} again, as in {queries[query.query_id].source}"
                    mend = "remove one of the two"
                    raise BadRow("query_id", "a name of its own", found, mend)
            except BadRow as error:
                raise _usage_error(source, error) from None
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
            raise ValueError(str(_usage_error(f"{path}:{number}", error))) from None
    content = b"".join(lines)
    if path.exists():
        if path.read_bytes() != content:
            raise UsageError(
                f"{path} holds other queries, which people may have answered: choose another "
                "folder, or move the file away together with its answers"
            )
        return
    write_atomically(path, content)


def read_events(path: str | Path) -> list[Event]:
    """Reads an answer file.

    What stands after the last newline was being written when its process ended, and was never
    confirmed to anybody: it is ignored. An event that comes twice counts once.

    Args:
      path: the file; none there = nothing was answered yet.

    Returns:
      All events, in order.

    Raises:
      UsageError: if a line is damaged, or an undo names no event that it could take back.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    events: dict[str, Event] = {}
    undone: set[str] = set()
    for number, line in enumerate(lines, start=1):
        source = f"{path}:{number}"
        try:
            event = _event(parsed(line), source)
            known = events.setdefault(event.event_id, event)
            if not is_same(known, event):
                found = f"{event.event_id!r}, as in {known.source}, which says something else"
                raise BadRow("event_id", "a name of its own", found, "give one of the two another")
            if known is event and event.undoes is not None:
                _assert_undoable(event, events, undone)
                undone.add(event.undoes)
        except BadRow as error:
            raise _usage_error(source, error) from None
    return list(events.values())


def standing_events(events: Sequence[Event]) -> list[Event]:
    """The answers and skips that were not taken back, in order.

    Args:
      events: of `read_events`.

    Returns:
      Those that stand.
    """
    undone = {event.undoes for event in events}
    return [event for event in events if event.undoes is None and event.event_id not in undone]


def current_answers(path: str | Path) -> list[Answer]:
    """The answers that stand: one for each that was given and not taken back.

    Several answers to one query, by one or several people, are all there.

    Args:
      path: the answer file.

    Returns:
      The answers, in the order in which they were given.

    Raises:
      UsageError: if the file is damaged.
    """
    return [
        Answer(
            event.event_id, event.query_id, event.annotator, event.ranks, event.weight, event.source
        )
        for event in standing_events(read_events(path))
        if event.ranks is not None
    ]


def check_known(answers: Iterable[Answer], queries: Mapping[str, Asked]) -> None:
    """Refuses answers to queries that nobody asked.

    Args:
      answers: the answers.
      queries: all queries, by their id.

    Raises:
      UsageError: naming the first answer to an unknown query, or with ranks that are not its own.
    """
    for answer in answers:
        query = queries.get(answer.query_id)
        if query is None:
            mend = "put the query file back, or take the answer's line out"
            bad = BadRow("query_id", "a query of the query files", repr(answer.query_id), mend)
            raise _usage_error(answer.source, bad)
        if len(answer.ranks) != len(query.completions):
            expected = f"{len(query.completions)} ranks, as {query.source} has completions"
            mend = "answers and queries are of different runs"
            raise _usage_error(answer.source, BadRow("ranks", expected, shown(answer.ranks), mend))


def event_line(event: Event) -> bytes:
    """The line of an event.

    Args:
      event: the event.

    Returns:
      JSON in UTF-8, with its newline.
    """
    record = event._asdict()
    del record["source"]
    if event.weight == 1:
        del record["weight"]
    return json_line({name: value for name, value in record.items() if value is not None})


def is_same(first: Event, second: Event) -> bool:
    """Whether two events say the same, whenever they were sent."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("event", "event_id", "query_id", "annotator", "ranks", "weight", "undoes")
    )


def _usage_error(source: str, error: BadRow) -> UsageError:
    return UsageError(str(Problem(source, "", *error.args)))


def _query(record: dict[str, Any], source: str) -> Asked:
    """One line of a query file."""
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
    if item_ids != [] and not _are_whole(item_ids, len(given)):
        expected = f"{len(given)} whole numbers, one a completion"
        raise BadRow("item_ids", expected, shown(item_ids))
    others: dict[str, Any] = {}
    for field, (kind, expected) in _KINDS.items():
        if field in record:
            others[field] = record[field]
            if not isinstance(record[field], kind) or isinstance(record[field], bool):
                raise BadRow(field, expected, shown(record[field]))
    query_id = _name(record, "query_id")
    return Asked(query_id, prompt, completions, item_ids=tuple(item_ids), source=source, **others)


def _query_record(query: Asked) -> dict[str, Any]:
    record = query._asdict()
    del record["source"]
    return record


def _event(record: dict[str, Any], source: str) -> Event:
    """One line of the answer file."""
    event = record.get("event")
    if event not in EVENTS:
        raise BadRow("event", f"one of {', '.join(EVENTS)}", shown(event))
    seconds, time = record.get("seconds"), record.get("time", "")
    if seconds is not None and not _is_number(seconds):
        raise BadRow("seconds", "a number of at least 0", shown(seconds))
    if not isinstance(time, str):
        raise BadRow("time", "a time as ISO 8601 has it", shown(time))
    event_id, query_id = _name(record, "event_id"), _name(record, "query_id")
    base = Event(event, event_id, query_id, _name(record, "annotator"))
    base = base._replace(seconds=seconds, time=time, source=source)
    if event == "undo":
        return base._replace(undoes=_name(record, "undoes"))
    order: Any = record.get("order")
    if order is not None and not (_are_whole(order) and sorted(order) == list(range(len(order)))):
        raise BadRow("order", "the numbers from 0 to K - 1, each once", shown(order))
    base = base._replace(order=None if order is None else tuple(order))
    if event == "skip":
        return base
    ranks: Any = record.get("ranks")
    num = None if order is None else len(order)
    if not _are_whole(ranks, num) or len(ranks) < 2 or min(ranks) < 0:
        expected = f"{num or 'at least two'} whole numbers of at least 0, one a completion"
        raise BadRow("ranks", expected, shown(ranks))
    weight = record.get("weight", 1.0)
    if not _is_number(weight) or weight == 0:
        raise BadRow("weight", "a number above 0", shown(weight))
    return base._replace(ranks=tuple(ranks), weight=float(weight))


def _assert_undoable(undo: Event, events: Mapping[str, Event], undone: set[str]) -> None:
    """Refuses an undo of what is not the annotator's, no answer or skip, or undone already."""
    target = events.get(undo.undoes or "")
    is_own = target is not None and target.annotator == undo.annotator
    if target is None or not is_own or target.event == "undo" or target.event_id in undone:
        expected = f"an earlier answer or skip of {undo.annotator!r} that stands"
        raise BadRow("undoes", expected, repr(undo.undoes), "take this line out")


def _name(record: dict[str, Any], field: str) -> str:
    name = record.get(field)
    if not isinstance(name, str) or not name.strip():
        raise BadRow(field, "a text that is not empty", shown(name))
    return name


def _is_number(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300


def _are_whole(values: Any, num: int | None = None) -> bool:
    """Whether it is a list of whole numbers, of a certain length if one is given."""
    return (
        isinstance(values, list)
        and len(values) == (len(values) if num is None else num)
        and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    )
