"""Adds events to an answer file: one process at a time, each event on the disk before the next."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shatter.cli.common.binary import FULL, UsageError
from shatter.cli.common.locks import open_lock, take_lock
from shatter.cli.label.answers import is_of_many, read_events, standing_events
from shatter.cli.label.confirmed import Confirmed, content_of, read_confirmed, write_confirmed
from shatter.cli.label.events import Event, check_event, event_line, is_same


class NotRecorded(UsageError):
    """The file could not be written: the event is not in it, all earlier ones are."""


class Conflict(UsageError):
    """An event contradicts the events of the file; it is not recorded."""


class Writer:
    """An open answer file, made by `open_writer`. Only one thread may use it at a time.

    Attributes:
      path: the file.
      events: all its events.
    """

    def __init__(self, path: Path, file: int, content: bytes, events: Sequence[Event]):
        self.path = path
        self.events = list(events)
        self._file = file
        self._by_id = {event.event_id: event for event in events}
        self._length = len(content)  # of the confirmed part
        self._digest = hashlib.sha256(content)
        self._is_cut = True  # whether the file ends where the confirmed part does

    def append(self, *events: Event) -> int:
        """Adds events, all or none, and waits until they are on the disk.

        Args:
          *events: events; one that is in the file already is left out.

        Returns:
          How many were new.

        Raises:
          NotRecorded: if they could not be written. The file is cut back to its state before.
          ValueError: if an event could not be read back.
          Conflict: if an event of the same id says something else, the annotator has an answer or
            skip to the same query that stands, or an undo takes back what does not stand.
        """
        new: dict[str, Event] = {}
        standing = _StandingEvents(self.events)
        for event in events:
            known = self._by_id.get(event.event_id) or new.get(event.event_id)
            if known is None:
                check_event(event)
                standing.take(event)
                new[event.event_id] = event
            elif not is_same(known, event):
                raise Conflict(
                    f"{self.path} has {event.event_id!r} already, as {known.event} to query "
                    f"{known.query_id!r}: undo it to change it"
                )
        if new:
            self._write(b"".join(event_line(event) for event in new.values()))
            self.events += new.values()
            self._by_id |= new
        return len(new)

    def _write(self, content: bytes) -> None:
        try:
            self._cut()
            self._assert_untouched()
            self._is_cut = False
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
            digest = self._digest.copy()
            digest.update(content)
            confirmed = Confirmed(self._length + len(content), digest.hexdigest())
            write_confirmed(self.path, confirmed)
        except OSError as error:
            try:
                self._cut()
            except OSError:
                self._is_cut = False  # so that the next write tries again
            raise NotRecorded(
                f"{error.filename or self.path}: {error.strerror}. This answer was not recorded; "
                "all earlier ones are safe. Free some disk space, or solve the problem that is "
                "named here, and answer again."
            ) from error
        self._length, self._digest = confirmed.num_bytes, digest
        self._is_cut = True

    def _cut(self) -> None:
        """Removes the rest of a failed write."""
        if not self._is_cut:
            os.ftruncate(self._file, self._length)
            self._is_cut = True

    def _assert_untouched(self) -> None:
        """Raises an error if another program has changed, moved or deleted the file."""
        opened = os.fstat(self._file)
        there = os.stat(self.path) if self.path.exists() else None
        same = there is not None and (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
        if not same or opened.st_size != self._length:
            raise NotRecorded(
                f"{self.path} was changed by another program. This answer was not recorded. Put "
                "the file back if it is gone, and start this program again."
            )


class _StandingEvents:
    """The events that stand while events are added: one for each query and named annotator."""

    def __init__(self, events: Sequence[Event]):
        self._events = {event.event_id: event for event in standing_events(events)}
        named = (event for event in self._events.values() if not is_of_many(event))
        self._done = {(event.query_id, event.annotator) for event in named}

    def take(self, event: Event) -> None:
        """Adds an event; raises a Conflict if the events before it rule it out."""
        if event.undoes is not None:
            undone = self._events.pop(event.undoes, None)
            if undone is None or undone.annotator != event.annotator:
                raise Conflict(
                    f"{event.undoes!r} is no answer or skip of {event.annotator!r} that stands"
                )
            self._done.discard((undone.query_id, undone.annotator))
            return
        if not is_of_many(event):
            if (event.query_id, event.annotator) in self._done:
                raise Conflict(
                    f"{event.annotator!r} has answered or skipped query {event.query_id!r} "
                    "already: undo that to change it"
                )
            self._done.add((event.query_id, event.annotator))
        self._events[event.event_id] = event


@contextmanager
def open_writer(path: str | Path, *, accept: bool = False) -> Iterator[Writer]:
    """Opens an answer file to add events, under a lock that ends with the process.

    A last line without its newline, left by a process that was killed, was never confirmed: it is
    moved to the end of `<path>.torn`.

    Args:
      path: the file; it is made if it is missing. `<path>.lock` holds the writer's process id,
        `<path>.confirmed` how much of the file was confirmed.
      accept: whether to accept the file as it is, even if a confirmed part is missing.

    Yields:
      The writer.

    Raises:
      UsageError: if another process writes to the file, a confirmed part of it is missing, a line
        is damaged, or the system refuses.
    """
    path = Path(path)  # messages name this path; the files beside it are beside a link's target
    try:
        _beside(path, "lock").parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(_beside(path, "lock"))
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        if process := take_lock(lock):
            raise UsageError(
                f"{path} is open for answers in process {process}: end that process first. Several "
                "people can answer at the same time in one process with --web."
            )
        if not accept:
            content_of(path)  # checked before anything is made or moved
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _cannot_open(path, error) from error
        try:
            yield _opened(path, file, accept)
        finally:
            os.close(file)
    finally:
        os.close(lock)


def _opened(path: Path, file: int, accept: bool) -> Writer:
    """Returns the writer of an open file, after its torn end was moved and the rest confirmed."""
    try:
        _move_torn(file, path)
        content = path.read_bytes()
        events = read_events(path, is_checked=not accept)
        held = Confirmed(len(content), hashlib.sha256(content).hexdigest())
        if accept or read_confirmed(path) != held:
            write_confirmed(path, held)
        _sync_folder(_beside(path, "lock").parent)
    except OSError as error:
        raise _cannot_open(path, error) from error
    return Writer(path, file, content, events)


def _move_torn(file: int, path: Path) -> None:
    """Moves a last line without its newline to the end of `<path>.torn`."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(_beside(path, "torn"), flags, 0o644), "ab") as torn:
            torn.write(content[end:] + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(file, end)
        os.fsync(file)


def _sync_folder(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, ending: str) -> Path:
    path = Path(os.path.realpath(path))
    return path.parent / f"{path.name}.{ending}"


def _cannot_open(path: Path, error: OSError) -> UsageError:
    if error.errno in FULL:
        return UsageError(
            f"{path}: {error.strerror}: free some disk space and give the same command again"
        )
    return UsageError(f"{path} cannot be opened for answers: {error.strerror} ({error.filename})")
