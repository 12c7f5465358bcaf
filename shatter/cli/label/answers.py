"""The file of people's answers, to which lines are only ever added.

A line is an event: an answer, a skip, or an undo of an earlier one of the two. How much of the file
was confirmed to people stands beside it (`confirmed.py`), so that a line that has gone is missed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shatter.cli.label.confirmed import accept_command, confirmed_file, content_of
from shatter.cli.label.queries import Asked, are_whole, name_in, texts_digest, usage_error
from shatter.data.files import json_line
from shatter.data.layouts import parsed, shown
from shatter.data.report import BadRow

EVENTS = ("answer", "skip", "undo")
EVENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What an event may be called."""
ID_FORM = "1 to 128 letters, digits, dots, dashes and underscores"
OF_MANY = "import-"
"""How the ids of imported answers begin that may be those of many people (`is_of_many`)."""


class Event(NamedTuple):
    """One line of the answer file.

    Attributes:
      event: one of `EVENTS`.
      event_id: its name, unique in the file, of the form `EVENT_ID`.
      query_id: the query it is about.
      annotator: whose it is.
      ranks: of an answer, `[K]`: smaller is better, equal = unresolved.
      weight: of an answer: how much it counts.
      undoes: of an undo: the event_id of the answer or skip that it takes back.
      order: `[K]`: the completion shown at each place; None = unknown.
      seconds: from the showing to the key; None = unknown.
      time: when it was recorded, ISO 8601, UTC; empty = unknown.
      texts: `texts_digest` of the query's prompt and completions; None = unknown.
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
    texts: str | None = None
    source: str = ""


class Answer(NamedTuple):
    """An answer that stands; the attributes are those of its `Event`."""

    event_id: str
    query_id: str
    annotator: str
    ranks: tuple[int, ...]
    weight: float = 1.0
    source: str = ""
    time: str = ""
    texts: str | None = None


def read_events(path: str | Path, *, is_checked: bool = True) -> list[Event]:
    """Reads an answer file.

    What stands after the last newline was being written when its process ended, and was never
    confirmed to anybody: it is ignored. An event that comes twice counts once.

    Args:
      path: the file; none there = nothing was answered yet.
      is_checked: whether what was confirmed must be in it.

    Returns:
      All events, in order.

    Raises:
      UsageError: if a line that was confirmed has gone or has changed, a line is damaged, or an
        undo names no event that it could take back.
    """
    path = Path(path)
    content = content_of(path) if is_checked else path.read_bytes()
    lines = content.split(b"\n")[:-1]
    events: dict[str, Event] = {}
    undone: set[str] = set()
    for number, line in enumerate(lines, start=1):
        source = f"{path}:{number}"
        try:
            event = _event(parsed(line), source)
            known = events.setdefault(event.event_id, event)
            if not is_same(known, event):
                found = f"{event.event_id!r}, as in {known.source}, which says something else"
                raise BadRow("event_id", "a name of its own", found)
            if known is event and event.undoes is not None:
                _assert_undoable(event, events, undone)
                undone.add(event.undoes)
        except BadRow as error:
            field, expected, found, *mend = error.args
            if confirmed_file(path).exists():
                accept = accept_command(path)
                mend = [f"put back a copy of the file, or take this line out, then: {accept}"]
            raise usage_error(source, BadRow(field, expected, found, *mend)) from None
    return list(events.values())


def standing_events(events: Sequence[Event]) -> list[Event]:
    """Returns the answers and skips that stand, in order: of one annotator and query the last.

    Args:
      events: of `read_events`.

    Returns:
      Those that were neither taken back nor, in files of older versions, followed by another of the
      same annotator to the same query. Answers of many people under one name (`is_of_many`) all
      stand.
    """
    undone = {event.undoes for event in events}
    left = [event for event in events if event.undoes is None and event.event_id not in undone]
    last = {(e.query_id, e.annotator): e.event_id for e in left if not is_of_many(e)}
    return [e for e in left if is_of_many(e) or last[e.query_id, e.annotator] == e.event_id]


def is_of_many(event: Event | Answer) -> bool:
    """Returns whether a name may stand for many people, as in an imported row that names nobody."""
    return event.event_id.startswith(OF_MANY)


def current_answers(path: str | Path) -> list[Answer]:
    """Returns the answers that stand: one for each query and annotator at most.

    Args:
      path: the answer file.

    Returns:
      The answers, in the order in which they were given.

    Raises:
      UsageError: if the file is damaged.
    """
    return [
        Answer(e.event_id, e.query_id, e.annotator, e.ranks, e.weight, e.source, e.time, e.texts)
        for e in standing_events(read_events(path))
        if e.ranks is not None
    ]


def check_known(answers: Iterable[Answer | Event], queries: Mapping[str, Asked]) -> None:
    """Refuses answers to queries that nobody asked.

    Args:
      answers: the answers, or answers and skips.
      queries: all queries, by their id.

    Raises:
      UsageError: naming the first answer to an unknown query, or to one with other texts.
    """
    for answer in answers:
        bad = stranger(answer, queries)
        if bad is not None:
            raise usage_error(answer.source, bad)


def stranger(answer: Answer | Event, queries: Mapping[str, Asked]) -> BadRow | None:
    """Returns what is wrong with the query of an answer; None = it is the one that was asked."""
    query = queries.get(answer.query_id)
    mend = (
        "put the query file back; `export --answers` writes the answers whose queries are there, "
        "which `import` takes into another --project"
    )
    if query is None:
        return BadRow("query_id", "a query of the query files", repr(answer.query_id), mend)
    if answer.ranks is not None and len(answer.ranks) != len(query.completions):
        expected = f"{len(query.completions)} ranks, as {query.source} has completions"
        return BadRow("ranks", expected, shown(answer.ranks), mend)
    if answer.texts not in (None, texts_digest(query.prompt, query.completions)):
        expected = f"an answer about the texts of {query.source}"
        return BadRow("texts", expected, f"one about others (sha256 {answer.texts})", mend)
    return None


def event_line(event: Event) -> bytes:
    """Returns the line of an event.

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


def check_event(event: Event) -> None:
    """Refuses an event that would not be read back.

    Raises:
      ValueError: naming the field, what was expected and what was found.
    """
    try:
        _event(parsed(event_line(event)), "")
    except BadRow as error:
        raise ValueError(str(usage_error(event.event_id, error))) from None


def is_same(first: Event, second: Event) -> bool:
    """Returns whether two events say the same, whenever they were sent."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("event", "event_id", "query_id", "annotator", "ranks", "weight", "undoes")
    )


def _event(record: dict[str, Any], source: str) -> Event:
    """Reads one line of the answer file."""
    event = record.get("event")
    if event not in EVENTS:
        raise BadRow("event", f"one of {', '.join(EVENTS)}", shown(event))
    seconds = record.get("seconds")
    if seconds is not None and not _is_number(seconds):
        raise BadRow("seconds", "a number of at least 0", shown(seconds))
    time = name_in(record, "time") if record.get("time") else ""
    texts = name_in(record, "texts") if "texts" in record else None
    base = Event(event, _id(record, "event_id"), name_in(record, "query_id"), "")
    base = base._replace(annotator=name_in(record, "annotator"), texts=texts)
    base = base._replace(seconds=seconds, time=time, source=source)
    if event == "undo":
        return base._replace(undoes=_id(record, "undoes"))
    order: Any = record.get("order")
    if order is not None and not (are_whole(order) and sorted(order) == list(range(len(order)))):
        raise BadRow("order", "the numbers from 0 to K - 1, each once", shown(order))
    base = base._replace(order=None if order is None else tuple(order))
    if event == "skip":
        return base
    ranks: Any = record.get("ranks")
    num = None if order is None else len(order)
    is_list = are_whole(ranks, num) and len(ranks) > 1
    if not is_list or not 0 <= min(ranks) <= max(ranks) < 2**31:
        expected = f"{num or 'at least two'} whole numbers from 0 to 2^31 - 1, one a completion"
        raise BadRow("ranks", expected, shown(ranks))
    weight = record.get("weight", 1.0)
    if not _is_number(weight) or not 1e-37 <= weight <= 1e37:
        raise BadRow("weight", "a number above 0, from 1e-37 to 1e37", shown(weight))
    return base._replace(ranks=tuple(ranks), weight=float(weight))


def _assert_undoable(undo: Event, events: Mapping[str, Event], undone: set[str]) -> None:
    """Refuses an undo of what is not the annotator's, no answer or skip, or undone already."""
    target = events.get(undo.undoes or "")
    is_own = target is not None and target.annotator == undo.annotator
    if target is None or not is_own or target.event == "undo" or target.event_id in undone:
        expected = f"an earlier answer or skip of {undo.annotator!r} that stands"
        raise BadRow("undoes", expected, repr(undo.undoes))


def _id(record: dict[str, Any], field: str) -> str:
    name = name_in(record, field)
    if not EVENT_ID.fullmatch(name):
        raise BadRow(field, ID_FORM, shown(name))
    return name


def _is_number(value: Any) -> bool:
    """Returns whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
