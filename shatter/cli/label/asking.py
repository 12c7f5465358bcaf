"""What the terminal and the page have in common: which query is next, and what a key means."""

import hashlib
import json
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import Event, standing_events
from shatter.cli.label.queries import Asked, texts_digest

MAX_NAME = 64  # characters of an annotator's name

Choice = int | Literal["tie", "skip"]
"""The place, from 0, of the response that was chosen, or that none was."""


class Standing(NamedTuple):
    """Where an annotator stands.

    Attributes:
      query: the one to answer now; None = all are done.
      num_answered: how many queries this annotator has answered.
      num_skipped: how many were skipped.
      num_queries: how many there are.
      last: the event that an undo takes back; None = there is none.
    """

    query: Asked | None
    num_answered: int
    num_skipped: int
    num_queries: int
    last: Event | None

    def __str__(self) -> str:
        skipped = f", {self.num_skipped} skipped" if self.num_skipped else ""
        return f"{self.num_answered} of {self.num_queries} answered{skipped}"


def standing(queries: Mapping[str, Asked], events: Sequence[Event], annotator: str) -> Standing:
    """Returns where an annotator stands; nothing but the events decides it.

    Args:
      queries: what is asked, in order.
      events: all events of the answer file.
      annotator: the annotator.

    Returns:
      The standing. After an undo the query that it was about comes next.
    """
    asked = [event for event in standing_events(events) if event.query_id in queries]
    own = [event for event in asked if event.annotator == annotator]
    done = {event.query_id: event.event for event in own}
    said = [event for event in events if event.annotator == annotator]
    again = said[-1].query_id if said and said[-1].event == "undo" else None
    pending = [query_id for query_id in queries if query_id not in done]
    next_id = again if again in pending else next(iter(pending), None)
    num_answered = sum(event == "answer" for event in done.values())
    return Standing(
        None if next_id is None else queries[next_id],
        num_answered,
        len(done) - num_answered,
        len(queries),
        own[-1] if own else None,
    )


def display_order(query: Asked, *, annotator: str, seed: int) -> tuple[int, ...]:
    """Returns the order in which an annotator sees completions: random, and always the same.

    Args:
      query: the query.
      annotator: the annotator.
      seed: the seed of the order.

    Returns:
      `[K]`, the completion at each place.
    """

    def digest(k: int) -> bytes:
        return hashlib.sha256(json.dumps([seed, annotator, query.query_id, k]).encode()).digest()

    return tuple(sorted(range(len(query.completions)), key=digest))


def shown_digest(query: Asked, order: Sequence[int]) -> str:
    """Returns a hash of what an annotator sees: the texts of a query in the order shown."""
    return texts_digest(query.prompt, [query.completions[k] for k in order])


def answer(
    query: Asked,
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
      choice: what was chosen.
      annotator: who chose.
      order: of `display_order`.
      seconds: how long it took.
      event_id: the event's name; a random one if not given.

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
    """Returns the event that takes another back.

    Args:
      last: the annotator's last answer or skip that stands.
      event_id: the event's name; a random one if not given.

    Returns:
      The undo.
    """
    event_id = event_id or uuid.uuid4().hex
    return Event("undo", event_id, last.query_id, last.annotator, undoes=last.event_id, time=now())


def annotator_name(given: str) -> str:
    """Returns an annotator's name, without white space around it.

    Args:
      given: what was given as a name.

    Returns:
      The name.

    Raises:
      UsageError: if nothing, or too much, or no printable line is left of it.
    """
    name = unicodedata.normalize("NFC", given).strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(
            f"an annotator's name has 1 to {MAX_NAME} printable characters, found {given[:80]!r}"
        )
    return name


def now() -> str:
    """Returns the time now, for an event."""
    return datetime.now(UTC).isoformat(timespec="seconds")
