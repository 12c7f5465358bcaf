"""The file of people's answers, to which lines are only ever added, and which answers stand.

Beside the file a note (`confirmed.py`) records how much of it was confirmed to people, so that a
missing line is noticed.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shatter.cli.common.binary import UsageError
from shatter.cli.label.confirmed import accept_command, confirmed_file, content_of
from shatter.cli.label.events import OF_MANY, Event, is_same, parse_event
from shatter.cli.label.queries import TextQuery, texts_digest, usage_error
from shatter.data.layouts import parsed, shown
from shatter.data.report import BadRow, Problem


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
    """Returns all events of an answer file, in order.

    Whatever stands after the last newline is ignored, because it was being written when its process
    ended and was never confirmed to anybody. An event that comes twice counts once.

    Args:
      path: the file; if there is none, nothing was answered yet.
      is_checked: whether to raise an error if a part of the file that was confirmed is missing.

    Returns:
      The events.

    Raises:
      UsageError: if a line that was confirmed is missing or has changed, a line is damaged, or an
        undo names no event that it could take back.
    """
    path = Path(path)
    events, problems = _parsed_events(path, content_of(path) if is_checked else path.read_bytes())
    if problems:
        problem = problems[0]
        if confirmed_file(path).exists():
            mend = "put back a copy of the file, or take this line out, then"
            problem = problem._replace(mend=f"{mend}: {accept_command(path)}")
        raise UsageError(str(problem))
    return events


def readable_events(path: str | Path) -> tuple[list[Event], list[Problem]]:
    """Returns the events of an answer file that may be damaged, and everything wrong with it.

    Args:
      path: the file, which must exist.

    Returns:
      The events of the lines that can be read, in order; and the problems: first, if the file is
      not as it was confirmed, the file itself, then its damaged lines.

    Raises:
      UsageError: if the file cannot be opened.
    """
    path = Path(path)
    problems = []
    try:
        content = content_of(path)
    except UsageError as error:
        content = _bytes_of(path)
        problems.append(
            Problem(str(path), "", "content", "all that was confirmed to people", str(error))
        )
    events, bad_lines = _parsed_events(path, content)
    return events, problems + bad_lines


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _parsed_events(path: Path, content: bytes) -> tuple[list[Event], list[Problem]]:
    """Returns the events of the whole lines of a file, and its damaged lines."""
    events: dict[str, Event] = {}
    problems: list[Problem] = []
    undone: set[str] = set()
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        source = f"{path}:{number}"
        try:
            event = parse_event(parsed(line), source)
            known = events.get(event.event_id, event)
            if not is_same(known, event):
                other = f"{event.event_id!r}, as in {known.source}, which says something else"
                raise BadRow("event_id", "a name of its own", other)
            if known is event and event.undoes is not None:
                _assert_undoable(event, events, undone)
                undone.add(event.undoes)
            events[event.event_id] = known
        except BadRow as error:
            problems.append(Problem(source, "", *error.args))
    return list(events.values()), problems


def standing_events(events: Sequence[Event]) -> list[Event]:
    """Returns the answers and skips that stand, in order.

    Those that were taken back do not stand. Of several by one annotator about one query, which only
    files of older versions have, the last one stands. Answers of many people under one name
    (`is_of_many`) all stand.
    """
    undone = {event.undoes for event in events}
    left = [event for event in events if event.undoes is None and event.event_id not in undone]
    last = {(e.query_id, e.annotator): e.event_id for e in left if not is_of_many(e)}
    return [e for e in left if is_of_many(e) or last[e.query_id, e.annotator] == e.event_id]


def is_of_many(event: Event | Answer) -> bool:
    """Returns whether many people may share an answer's name, as imported rows without names do."""
    return event.event_id.startswith(OF_MANY)


def current_answers(path: str | Path) -> list[Answer]:
    """Returns the answers that stand, in the order in which they were given.

    Args:
      path: the answer file.

    Returns:
      The answers, at most one for each query and annotator.

    Raises:
      UsageError: if the file is damaged.
    """
    return [
        Answer(e.event_id, e.query_id, e.annotator, e.ranks, e.weight, e.source, e.time, e.texts)
        for e in standing_events(read_events(path))
        if e.ranks is not None
    ]


def check_known(answers: Iterable[Answer | Event], queries: Mapping[str, TextQuery]) -> None:
    """Raises an error if an answer is about a query that was not asked here.

    Args:
      answers: the answers, or answers and skips.
      queries: all queries, by their id.

    Raises:
      UsageError: naming the first answer to an unknown query, or to one with other texts.
    """
    for answer in answers:
        bad = mismatch(answer, queries)
        if bad is not None:
            raise usage_error(answer.source, bad)


def mismatch(answer: Answer | Event, queries: Mapping[str, TextQuery]) -> BadRow | None:
    """Returns how an answer differs from the query of its id; None if the two belong together."""
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


def _assert_undoable(undo: Event, events: Mapping[str, Event], undone: set[str]) -> None:
    """Raises an error unless an undo takes back a standing answer or skip of its annotator."""
    target = events.get(undo.undoes or "")
    is_own = target is not None and target.annotator == undo.annotator
    if target is None or not is_own or target.event == "undo" or target.event_id in undone:
        expected = f"an earlier answer or skip of {undo.annotator!r} that stands"
        raise BadRow("undoes", expected, repr(undo.undoes))
