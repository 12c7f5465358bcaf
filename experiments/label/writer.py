"""Adds events to an answer file: one process at a time, each event on the disk before the next."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.common.binary import UsageError
from experiments.label.answers import Event, event_line, is_same, read_events


class NotRecorded(UsageError):
    """An event is not in the file; all earlier ones are."""


class Conflict(UsageError):
    """An event of this id is in the file and says something else."""


class Writer:
    """An answer file that is open; of `open_writer`. Not for two threads at a time.

    Attributes:
      path: the file.
      events: what is in it.
    """

    def __init__(self, path: Path, file: int, events: Sequence[Event]):
        self.path = path
        self.events = list(events)
        self._file = file
        self._by_id = {event.event_id: event for event in events}
        self._length = os.fstat(file).st_size  # of what is confirmed
        self._is_cut = True  # whether the file ends there

    def append(self, *events: Event) -> int:
        """Adds events, all or none, and waits until the disk has them.

        Args:
          *events: events; one that is in the file already is left out.

        Returns:
          How many were new.

        Raises:
          NotRecorded: if they could not be written. The file is cut back to what it was.
          Conflict: if an event of the same id says something else.
        """
        new: dict[str, Event] = {}
        for event in events:
            known = self._by_id.get(event.event_id) or new.setdefault(event.event_id, event)
            if not is_same(known, event):
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
        except OSError as error:
            try:
                self._cut()
            except OSError:
                self._is_cut = False  # the next write tries again
            raise NotRecorded(
                f"{self.path}: {error.strerror}. This answer was not recorded; all earlier ones "
                "are safe. Free some space (or mend what the message says) and answer again."
            ) from error
        self._length += len(content)
        self._is_cut = True

    def _cut(self) -> None:
        """Removes what a failed write has left."""
        if not self._is_cut:
            os.ftruncate(self._file, self._length)
            self._is_cut = True

    def _assert_untouched(self) -> None:
        """Refuses to go on where another program has changed, moved or deleted the file."""
        opened = os.fstat(self._file)
        there = os.stat(self.path) if self.path.exists() else None
        same = there is not None and (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
        if not same or opened.st_size != self._length:
            raise NotRecorded(
                f"{self.path} was changed by another program. This answer was not recorded. Put "
                "the file back if it is gone, and start this program again."
            )


@contextmanager
def open_writer(path: str | Path) -> Iterator[Writer]:
    """Opens an answer file for adding, under a lock that ends with the process.

    A last line without its newline, left by a process that was killed, was never confirmed: it is
    moved to the end of `<path>.torn`.

    Args:
      path: the file; made where it is missing. `<path>.lock` holds the writer's process id.

    Yields:
      The writer.

    Raises:
      UsageError: if another process writes to the file, a line is damaged, or the system refuses.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(_beside(path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        if process := take_lock(lock):
            raise UsageError(
                f"{path} is open for answers in process {process}: end that process first. Several "
                "people can answer at the same time in one process with --web."
            )
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            try:
                _move_torn(file, path)
                _sync_folder(path.parent)
            except OSError as error:
                raise _refused(path, error) from error
            yield Writer(path, file, read_events(path))
        finally:
            os.close(file)
    finally:
        os.close(lock)


def take_lock(lock: int) -> str | None:
    """Takes a lock file for this process and writes its number there.

    Args:
      lock: descriptor of the open file.

    Returns:
      None, or the number of the process that has it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return None


def _move_torn(file: int, path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with _beside(path, "torn").open("ab") as torn:
            torn.write(content[end:] + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(file, end)
        os.fsync(file)


def _sync_folder(folder: Path) -> None:
    """Waits until the disk has the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _refused(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be opened for answers: {error.strerror} ({error.filename})")
