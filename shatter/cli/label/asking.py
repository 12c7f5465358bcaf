"""Shared by the terminal and the page: which query is next, and which event a choice makes."""

import hashlib
import json
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import standing_events
from shatter.cli.label.events import Event
from shatter.cli.label.queries import TextQuery, texts_digest

MAX_NAME = 64  # characters of an annotator's name

Choice = int | Literal["tie", "skip"]
"""The position, from 0, of the chosen response as it was shown; or a tie, or a skip."""


class Progress(NamedTuple):
    """How far an annotator has got.

    Attributes:
      query: the query to answer now; None = all are done.
      num_answered: how many queries this annotator has answered.
      num_skipped: how many this annotator has skipped.
      num_queries: how many there are.
      last: the event that an undo takes back; None = there is none.
    """

    query: TextQuery | None
    num_answered: int
    num_skipped: int
    num_queries: int
    last: Event | None

    def __str__(self) -> str:
        skipped = f", {self.num_skipped} skipped" if self.num_skipped else ""
        return f"{self.num_answered} of {self.num_queries} answered{skipped}"


def progress_of(
    queries: Mapping[str, TextQuery], events: Sequence[Event], annotator: str
) -> Progress:
    """Returns how far an annotator has got; it depends on the events alone.

    Args:
      queries: all queries to answer, in order.
      events: all events of the answer file.
      annotator: the annotator.

    Returns:
      The progress. After an undo the query that it was about comes next.
    """
    asked = [event for event in standing_events(events) if event.query_id in queries]
    own = [event for event in asked if event.annotator == annotator]
    done = {event.query_id: event.event for event in own}
    history = [event for event in events if event.annotator == annotator]
    again = history[-1].query_id if history and history[-1].event == "undo" else None
    pending = [query_id for query_id in queries if query_id not in done]
    next_id = again if again in pending else next(iter(pending), None)
    num_answered = sum(event == "answer" for event in done.values())
    return Progress(
        None if next_id is None else queries[next_id],
        num_answered,
        len(done) - num_answered,
        len(queries),
        own[-1] if own else None,
    )


def display_order(query: TextQuery, *, annotator: str, seed: int) -> tuple[int, ...]:
    """Returns the order in which an annotator sees a query's completions.

    The order is random, and the same in every call.

    Args:
      query: the query.
      annotator: the annotator.
      seed: the seed of the order.

    Returns:
      `[K]`, the completion at each position.
    """

    def digest(k: int) -> bytes:
        return hashlib.sha256(json.dumps([seed, annotator, query.query_id, k]).encode()).digest()

    return tuple(sorted(range(len(query.completions)), key=digest))


def shown_digest(query: TextQuery, order: Sequence[int]) -> str:
    """Returns a hash of a query's texts in the order in which an annotator sees them."""
    return texts_digest(query.prompt, [query.completions[k] for k in order])


def answer(
    query: TextQuery,
    choice: Choice,
    *,
    annotator: str,
    order: Sequence[int],
    seconds: float,
    event_id: str | None = None,
) -> Event:
    """Returns the event of a choice.

    Args:
      query: the query.
      choice: the choice.
      annotator: who chose.
      order: the order in which the completions were shown, by `display_order`.
      seconds: how long it took.
      event_id: the event's id; a random one if not given.

    Returns:
      An answer with rank 1 for the chosen completion and 2 for the others, or 1 for all in a tie;
      or a skip.
    """
    event = Event(
        "skip" if choice == "skip" else "answer",
        event_id or uuid.uuid4().hex,
        query.query_id,
        annotator,
        order=tuple(order),
        seconds=round(seconds, 3),
        time=now(),
        texts=texts_digest(query.prompt, query.completions),
    )
    if choice == "skip":
        return event
    chosen = set(order) if choice == "tie" else {order[choice]}
    return event._replace(ranks=tuple(1 if k in chosen else 2 for k in range(len(order))))


def undo(last: Event, *, event_id: str | None = None) -> Event:
    """Returns the event that takes another one back.

    Args:
      last: the annotator's last answer or skip that stands.
      event_id: the event's id; a random one if not given.

    Returns:
      The undo.
    """
    event_id = event_id or uuid.uuid4().hex
    return Event("undo", event_id, last.query_id, last.annotator, undoes=last.event_id, time=now())


def annotator_name(text: str) -> str:
    """Returns an annotator's name, normalised and without white space around it.

    Args:
      text: the name as it was typed.

    Returns:
      The name.

    Raises:
      UsageError: if the name is empty, too long or not one printable line.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(
            f"an annotator's name has 1 to {MAX_NAME} printable characters, found {text[:80]!r}"
        )
    return name


def now() -> str:
    """Returns the time now, as events record it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
