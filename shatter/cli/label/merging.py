"""Which of the answers from elsewhere an answer file does not have yet.

An answer is known by its content (the texts, the ranks, the weight, whose it is) and its time, not
by its id, which depends on the road that it took.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shatter.cli.label.answers import OF_MANY, Event, is_of_many, standing_events
from shatter.cli.label.queries import Asked, texts_digest
from shatter.data.layouts import Text, text_key
from shatter.data.report import Problem


class Given(NamedTuple):
    """An event from elsewhere.

    Attributes:
      event: its ranks and order are of `completions`.
      prompt: the prompt that it is about.
      completions: the completions that it is about.
    """

    event: Event
    prompt: Text
    completions: tuple[Text, ...]


class Merged(NamedTuple):
    """What is to be added.

    Attributes:
      queries: comparisons that were not known.
      events: events that were not recorded, about queries of the project.
      problems: events left out, because their annotator has said something else.
    """

    queries: list[Asked]
    events: list[Event]
    problems: list[Problem]


def merge(
    given: Sequence[Given], known: Mapping[str, Asked], recorded: Sequence[Event], sha8: str
) -> Merged:
    """Finds what is new.

    An event is known if one of the same content is recorded, standing or taken back, with the same
    time, or one of the two without a time; each recorded event accounts for one. A named annotator
    who has an answer or skip that stands says nothing new by the same, and a contradiction is left
    out: as a problem, unless it was taken back where it comes from.

    Args:
      given: events from elsewhere, in order; an undo follows what it undoes.
      known: the project's queries, by their id.
      recorded: the events of its answer file.
      sha8: start of the sha256 of the file that they came from, for names of new queries.

    Returns:
      What is to be added.
    """
    state = _State(known, recorded, sha8)
    undone = {one.event.undoes for one in given}
    for one in given:
        if one.event.undoes is None:
            state.take(one, is_undone=one.event.event_id in undone)
        else:
            state.take_back(one.event)
    return Merged(state.new_queries, state.new_events, state.problems)


class _State:
    """The project as it becomes, event by event."""

    def __init__(self, known: Mapping[str, Asked], recorded: Sequence[Event], sha8: str):
        self.new_queries: list[Asked] = []
        self.new_events: list[Event] = []
        self.problems: list[Problem] = []
        self._sha8 = sha8
        self._query_ids = set(known)
        self._event_ids = {event.event_id: event for event in recorded}
        self._here: dict[str, str] = {}  # the recorded event that a given one is
        self._queries: dict[str, Asked] = {}
        for query in known.values():
            self._queries.setdefault(comparison_key(query.prompt, query.completions), query)
        self._waiting: dict[str, list[Event]] = defaultdict(list)
        self._standing: dict[tuple[str, str], tuple[Event, str]] = {}
        self._stand_ids = {event.event_id for event in standing_events(recorded)}
        for event in recorded:
            if event.undoes is None and event.query_id in known:
                query = known[event.query_id]
                content = _content(event, query.prompt, query.completions)
                self._waiting[content].append(event)
                if event.event_id in self._stand_ids and not is_of_many(event):
                    place = _place(event, query.prompt, query.completions)
                    self._standing[place] = event, content

    def take(self, given: Given, is_undone: bool) -> None:
        """Adds an answer or skip unless it is known."""
        event, prompt, completions = given
        content = _content(event, prompt, completions)
        found = self._known(content, _time(event))
        place = _place(event, prompt, completions)
        if found is None and not is_of_many(event) and place in self._standing:
            found, said = self._standing[place]
            if said != content:
                if not is_undone:
                    self.problems.append(_contradiction(event, found))
                return
        if found is None:
            found = self._added(given, content)
            self._stand_ids.add(found.event_id)
            if not is_of_many(event):
                self._standing[place] = found, content
        self._here[event.event_id] = found.event_id

    def take_back(self, undo: Event) -> None:
        """Adds an undo unless what it undoes was left out, or is taken back already."""
        target = self._event_ids.get(self._here.get(undo.undoes or "", ""))
        if target is None or target.event_id not in self._stand_ids:
            return
        event_id = self._free_id(undo.event_id, f"undo {target.event_id} {undo.time}")
        event = undo._replace(
            event_id=event_id, query_id=target.query_id, undoes=target.event_id, source=""
        )
        self._stand_ids.remove(target.event_id)
        self._standing = {k: one for k, one in self._standing.items() if one[0] != target}
        self._append(event)

    def _known(self, content: str, time: str) -> Event | None:
        """Returns a recorded event of this content, if there is one that accounts for no other."""
        waiting = self._waiting[content]
        same = [event for event in waiting if _time(event) == time]
        close = [event for event in waiting if not time or not _time(event)]
        for event in (*same, *close):
            waiting.remove(event)
            return event
        return None

    def _added(self, given: Given, content: str) -> Event:
        event, prompt, completions = given
        key = comparison_key(prompt, completions)
        query = self._queries.get(key)
        if query is None:
            line = event.source.rpartition(":")[2]
            query_id = _free(f"import-{self._sha8}-{line}", self._query_ids)
            query = Asked(query_id, prompt, completions, round="import", arm="import")
            self._queries[key] = query
            self._query_ids.add(query_id)
            self.new_queries.append(query)
        order = {text_key(text): k for k, text in enumerate(query.completions)}
        there = [order[text_key(text)] for text in completions]  # of each completion, its number
        ranks = event.ranks and tuple(event.ranks[there.index(k)] for k in range(len(there)))
        event = event._replace(
            event_id=self._free_id(event.event_id, f"{content} {_time(event)}"),
            query_id=query.query_id,
            ranks=ranks,
            order=event.order and tuple(there[k] for k in event.order),
            texts=texts_digest(query.prompt, query.completions),
            source="",
        )
        self._append(event)
        return event

    def _append(self, event: Event) -> None:
        self._event_ids[event.event_id] = event
        self.new_events.append(event)

    def _free_id(self, event_id: str, content: str) -> str:
        """Returns the id of an event, or a hash of what it says if it has none or it is taken."""
        if event_id in ("row", "import-row") or event_id in self._event_ids:
            begin = OF_MANY if event_id.startswith(OF_MANY) else "row-"
            digest = hashlib.sha256(content.encode()).hexdigest()[:32]
            return _free(f"{begin}{digest}", self._event_ids)
        return event_id


def comparison_key(prompt: Text, completions: Sequence[Text]) -> str:
    """Returns a comparison as a dict key: its texts, in whatever order."""
    return json.dumps([text_key(prompt), sorted(map(text_key, completions))])


def _content(event: Event, prompt: Text, completions: Sequence[Text]) -> str:
    """Returns what an answer or skip says, and who says it."""
    texts = [text_key(text) for text in completions]
    said = sorted(zip(texts, event.ranks or [0] * len(texts), strict=True))
    return json.dumps([text_key(prompt), said, event.weight, event.annotator, event.event])


def _place(event: Event, prompt: Text, completions: Sequence[Text]) -> tuple[str, str]:
    """Returns what a named annotator says one thing about."""
    return comparison_key(prompt, completions), event.annotator


def _time(event: Event) -> str:
    """When it was said; of a row that names nobody, older versions recorded when it came."""
    return "" if is_of_many(event) else event.time


def _free(name: str, taken: Mapping[str, Event] | set[str]) -> str:
    number = 1
    while (name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _contradiction(event: Event, found: Event) -> Problem:
    expected = f"no other answer of {event.annotator!r} to this comparison than {found.event_id!r}"
    mend = "undo that, or leave this one out"
    return Problem(event.source, "", "ranks", expected, f"another {event.event}", mend)
