"""One line of an answer file: an answer, a skip, or an undo of one of the two."""

import re
from typing import Any, NamedTuple

from shatter.cli.label.queries import are_whole, name_in, usage_error
from shatter.data.files import json_line
from shatter.data.layouts import parsed, shown
from shatter.data.report import BadRow

KINDS = ("answer", "skip", "undo")
EVENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""The form of an event's id."""
ID_FORM = "1 to 128 letters, digits, dots, dashes and underscores"
OF_MANY = "import-"
"""The prefix of the ids of imported answers that may come from many people (`is_of_many`)."""


class Event(NamedTuple):
    """One line of the answer file.

    Attributes:
      event: one of `KINDS`.
      event_id: its id, unique in the file, of the form `EVENT_ID`.
      query_id: the query that it is about.
      annotator: the name of the person who gave it.
      ranks: of an answer, `[K]`: smaller is better, equal = unresolved.
      weight: of an answer: how much it counts.
      undoes: of an undo: the event_id of the answer or skip that it takes back.
      order: `[K]`, the completion shown at each position; None = unknown.
      seconds: the time from showing the query to the key; None = unknown.
      time: when it was recorded, ISO 8601, UTC; empty = unknown.
      texts: `texts_digest` of the query's prompt and completions; None = unknown.
      source: "file:line" that it was read from; not written.
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


def event_line(event: Event) -> bytes:
    """Returns the line of an event: JSON in UTF-8, with its newline."""
    record = event._asdict()
    del record["source"]
    if event.weight == 1:
        del record["weight"]
    return json_line({name: value for name, value in record.items() if value is not None})


def check_event(event: Event) -> None:
    """Raises an error if an event could not be read back.

    Raises:
      ValueError: naming the field, what was expected and what was found.
    """
    try:
        parse_event(parsed(event_line(event)), "")
    except BadRow as error:
        raise ValueError(str(usage_error(event.event_id, error))) from None


def is_same(first: Event, second: Event) -> bool:
    """Returns whether two events say the same, whenever they were recorded."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("event", "event_id", "query_id", "annotator", "ranks", "weight", "undoes")
    )


def parse_event(record: dict[str, Any], source: str) -> Event:
    """Returns the event of a line.

    Args:
      record: the JSON object of the line.
      source: "file:line", which the event keeps.

    Returns:
      The event.

    Raises:
      BadRow: naming the field, what was expected and what was found.
    """
    kind = record.get("event")
    if kind not in KINDS:
        raise BadRow("event", f"one of {', '.join(KINDS)}", shown(kind))
    seconds = record.get("seconds")
    if seconds is not None and not _is_number(seconds):
        raise BadRow("seconds", "a number of at least 0", shown(seconds))
    event = Event(
        kind,
        _id(record, "event_id"),
        name_in(record, "query_id"),
        name_in(record, "annotator"),
        seconds=seconds,
        time=name_in(record, "time") if record.get("time") else "",
        texts=name_in(record, "texts") if "texts" in record else None,
        source=source,
    )
    if kind == "undo":
        return event._replace(undoes=_id(record, "undoes"))
    order: Any = record.get("order")
    if order is not None and not (are_whole(order) and sorted(order) == list(range(len(order)))):
        raise BadRow("order", "the numbers from 0 to K - 1, each once", shown(order))
    event = event._replace(order=None if order is None else tuple(order))
    return event if kind == "skip" else _with_ranks(event, record)


def _with_ranks(event: Event, record: dict[str, Any]) -> Event:
    """Returns an answer with the ranks and the weight of its record."""
    ranks: Any = record.get("ranks")
    num = None if event.order is None else len(event.order)
    is_list = are_whole(ranks, num) and len(ranks) > 1
    if not is_list or not 0 <= min(ranks) <= max(ranks) < 2**31:
        expected = f"{num or 'at least two'} whole numbers from 0 to 2^31 - 1, one a completion"
        raise BadRow("ranks", expected, shown(ranks))
    weight = record.get("weight", 1.0)
    if not _is_number(weight) or not 1e-37 <= weight <= 1e37:
        raise BadRow("weight", "a number above 0, from 1e-37 to 1e37", shown(weight))
    return event._replace(ranks=tuple(ranks), weight=float(weight))


def _id(record: dict[str, Any], field: str) -> str:
    name = name_in(record, field)
    if not EVENT_ID.fullmatch(name):
        raise BadRow(field, ID_FORM, shown(name))
    return name


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
