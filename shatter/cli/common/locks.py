"""Locks: only one process at a time works on a folder, because two would overwrite each other.

The lock is flock's, so the system gives it back however the process ends, and the number of the
process that holds it stands in the file.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shatter.cli.common.binary import FULL, UsageError

LOCK = ".lock"
"""The name of the lock file inside the folder that it guards."""


@contextmanager
def alone(folder: str | Path, flag: str) -> Iterator[None]:
    """Keeps other processes out of a folder until the block or this process ends.

    Args:
      folder: the folder, which is made if it is missing; its lock is the file `.lock` in it.
      flag: the flag that names the folder, for messages.

    Yields:
      Nothing.

    Raises:
      UsageError: if another process works on the folder, or it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UsageError(f"{flag}={folder} cannot be made: {error.strerror}") from error
    lock = open_lock(folder / LOCK)
    try:
        if process := take_lock(lock):
            raise UsageError(
                f"{flag}: process {process} works on {folder}: wait until it has ended, or choose "
                "another folder"
            )
        yield
    finally:
        os.close(lock)


def open_lock(path: Path) -> int:
    """Opens a lock file, which is made if it is missing.

    Args:
      path: the lock file.

    Returns:
      A descriptor, for `take_lock`. Closing it, or the end of the process, gives the lock back.

    Raises:
      UsageError: if it cannot be opened, or is a symbolic link, whose target would be overwritten.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UsageError(
            f"the lock {path} cannot be opened: {reason}. Fix that, or remove the lock if no "
            "process works on the folder"
        ) from error


def take_lock(lock: int) -> str | None:
    """Takes a lock for this process, and writes the process's number into its file.

    Args:
      lock: the descriptor of the open lock file.

    Returns:
      None, or the number of the process that holds the lock.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return None
