"""Finds which of the answers from elsewhere an answer file does not have yet.

An answer is identified by its content (the texts, the ranks, the weight, the annotator) and its
time. Its id is no help, because it depends on the way by which the answer came.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shatter.cli.label.answers import is_of_many, standing_events
from shatter.cli.label.events import OF_MANY, Event
from shatter.cli.label.queries import TextQuery, texts_digest
from shatter.data.layouts import Text, text_key
from shatter.data.report import Problem


class IncomingEvent(NamedTuple):
    """An event from elsewhere, with the comparison that it is about.

    Attributes:
      event: the event; its ranks and order are those of `completions`.
      prompt: the prompt of the comparison.
      completions: the completions of the comparison.
      last_turn: as in `TextQuery`.
      arm: the arm of a query that this adds; an audit stays one.
    """

    event: Event
    prompt: Text
    completions: tuple[Text, ...]
    last_turn: bool = False
    arm: str = "import"


class Merged(NamedTuple):
    """The result of merging: what is to be added to the project.

    Attributes:
      queries: comparisons that the project does not have.
      events: events that are not recorded, about queries of the project.
      problems: events that are left out because they contradict their annotator's answer here.
    """

    queries: list[TextQuery]
    events: list[Event]
    problems: list[Problem]


def merge(
    incoming: Sequence[IncomingEvent],
    known: Mapping[str, TextQuery],
    recorded: Sequence[Event],
    sha8: str,
) -> Merged:
    """Returns the events from elsewhere that are new to a project.

    An event is known if one of the same content is recorded, standing or taken back, with the same
    time, or if one of the two has no time. Each recorded event accounts for one incoming event. A
    named annotator who has an answer or skip that stands adds nothing by giving it again. An event
    that contradicts it is left out, and is a problem unless it was taken back where it comes from.

    Args:
      incoming: events from elsewhere, in order, each undo after what it undoes.
      known: the project's queries, by their id.
      recorded: the events of its answer file.
      sha8: the first 8 digits of the sha256 of the file that the events came from, for the names of
        new queries.

    Returns:
      What is to be added.
    """
    merger = _Merger(known, recorded, sha8)
    undone = {item.event.undoes for item in incoming}
    for item in incoming:
        if item.event.undoes is None:
            merger.take(item, is_undone=item.event.event_id in undone)
        else:
            merger.take_back(item.event)
    return Merged(merger.new_queries, merger.new_events, merger.problems)


class _Merger:
    """A project to which incoming events are added one by one."""

    def __init__(self, known: Mapping[str, TextQuery], recorded: Sequence[Event], sha8: str):
        self.new_queries: list[TextQuery] = []
        self.new_events: list[Event] = []
        self.problems: list[Problem] = []
        self._sha8 = sha8
        self._query_ids = set(known)
        self._event_ids = {event.event_id: event for event in recorded}
        self._recorded_as: dict[str, str] = {}  # incoming event_id -> event_id here
        self._queries: dict[str, TextQuery] = {}
        for query in known.values():
            self._queries.setdefault(comparison_key(query.prompt, query.completions), query)
        self._unmatched: dict[str, list[Event]] = defaultdict(list)  # recorded, by content
        self._opinions: dict[tuple[str, str], tuple[Event, str]] = {}  # standing, and its content
        self._standing_ids = {event.event_id for event in standing_events(recorded)}
        for event in recorded:
            if event.undoes is None and event.query_id in known:
                query = known[event.query_id]
                content = _content(event, query.prompt, query.completions)
                self._unmatched[content].append(event)
                if event.event_id in self._standing_ids and not is_of_many(event):
                    key = _opinion_key(event, query.prompt, query.completions)
                    self._opinions[key] = event, content

    def take(self, incoming: IncomingEvent, is_undone: bool) -> None:
        """Adds an answer or skip unless it is known."""
        event, prompt, completions = incoming[:3]
        content = _content(event, prompt, completions)
        recorded = self._match(content, _time(event))
        key = _opinion_key(event, prompt, completions)
        if recorded is None and not is_of_many(event) and key in self._opinions:
            recorded, opinion = self._opinions[key]
            if opinion != content:
                if not is_undone:
                    self.problems.append(_contradiction(event, recorded))
                return
        if recorded is None:
            recorded = self._added(incoming, content)
            self._standing_ids.add(recorded.event_id)
            if not is_of_many(event):
                self._opinions[key] = recorded, content
        self._recorded_as[event.event_id] = recorded.event_id

    def take_back(self, undo: Event) -> None:
        """Adds an undo unless its target was left out, or is taken back already."""
        target = self._event_ids.get(self._recorded_as.get(undo.undoes or "", ""))
        if target is None or target.event_id not in self._standing_ids:
            return
        event_id = self._free_id(undo.event_id, f"undo {target.event_id} {undo.time}")
        event = undo._replace(
            event_id=event_id, query_id=target.query_id, undoes=target.event_id, source=""
        )
        self._standing_ids.remove(target.event_id)
        self._opinions = {
            key: opinion for key, opinion in self._opinions.items() if opinion[0] != target
        }
        self._append(event)

    def _match(self, content: str, time: str) -> Event | None:
        """Returns a recorded event of this content that accounts for no other incoming event."""
        unmatched = self._unmatched[content]
        same = [event for event in unmatched if _time(event) == time]
        close = [event for event in unmatched if not time or not _time(event)]
        for event in (*same, *close):
            unmatched.remove(event)
            return event
        return None

    def _added(self, incoming: IncomingEvent, content: str) -> Event:
        """Adds an event, and its query if that is new; returns it as it is recorded here."""
        event, query = incoming.event, self._query_of(incoming)
        number_of = {text_key(text): k for k, text in enumerate(query.completions)}
        numbers = [number_of[text_key(text)] for text in incoming.completions]
        event = event._replace(
            event_id=self._free_id(event.event_id, f"{content} {_time(event)}"),
            query_id=query.query_id,
            ranks=event.ranks and tuple(event.ranks[numbers.index(k)] for k in range(len(numbers))),
            order=event.order and tuple(numbers[k] for k in event.order),
            texts=texts_digest(query.prompt, query.completions),
            source="",
        )
        self._append(event)
        return event

    def _query_of(self, incoming: IncomingEvent) -> TextQuery:
        """Returns the project's query about a comparison, which is added if it is new."""
        event, prompt, completions, last_turn, arm = incoming
        key = comparison_key(prompt, completions)
        query = self._queries.get(key)
        if query is None:
            line = event.source.rpartition(":")[2]
            query_id = _free_name(f"import-{self._sha8}-{line}", self._query_ids)
            query = TextQuery(
                query_id, prompt, completions, round="import", arm=arm, last_turn=last_turn
            )
            self._queries[key] = query
            self._query_ids.add(query_id)
            self.new_queries.append(query)
        return query

    def _append(self, event: Event) -> None:
        self._event_ids[event.event_id] = event
        self.new_events.append(event)

    def _free_id(self, event_id: str, content: str) -> str:
        """Returns an event's id, or a hash of its content if it has none or the id is taken."""
        if event_id in ("row", "import-row") or event_id in self._event_ids:
            prefix = OF_MANY if event_id.startswith(OF_MANY) else "row-"
            digest = hashlib.sha256(content.encode()).hexdigest()[:32]
            return _free_name(f"{prefix}{digest}", self._event_ids)
        return event_id


def comparison_key(prompt: Text, completions: Sequence[Text]) -> str:
    """Returns a dict key for a comparison: its texts, independent of the completions' order."""
    return json.dumps([text_key(prompt), sorted(map(text_key, completions))])


def _content(event: Event, prompt: Text, completions: Sequence[Text]) -> str:
    """Returns a key for what an answer or skip says and who says it."""
    texts = [text_key(text) for text in completions]
    ranked = sorted(zip(texts, event.ranks or [0] * len(texts), strict=True))
    return json.dumps([text_key(prompt), ranked, event.weight, event.annotator, event.event])


def _opinion_key(event: Event, prompt: Text, completions: Sequence[Text]) -> tuple[str, str]:
    """Returns a key for a comparison and an annotator, who has one standing event about it."""
    return comparison_key(prompt, completions), event.annotator


def _time(event: Event) -> str:
    """Returns an event's time; "" for answers of many, where older versions noted the import's."""
    return "" if is_of_many(event) else event.time


def _free_name(name: str, taken: Mapping[str, Event] | set[str]) -> str:
    number = 1
    while (name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _contradiction(event: Event, other: Event) -> Problem:
    expected = f"no other answer of {event.annotator!r} to this comparison than {other.event_id!r}"
    mend = "undo that, or leave this one out"
    return Problem(event.source, "", "ranks", expected, f"another {event.event}", mend)
