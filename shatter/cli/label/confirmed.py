"""How much of an answer file was confirmed to people: its length and its sha256, beside it.

Lines are only ever added, so what was confirmed once must still begin the file. The note is written
after the lines: behind the file it is harmless, ahead of it something has gone.
"""

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from shatter.cli.common.binary import UsageError


class Confirmed(NamedTuple):
    """The beginning of an answer file that was confirmed."""

    num_bytes: int
    sha256: str


def accept_command(path: str | Path) -> str:
    """Returns the command that takes an answer file as it is."""
    folder = shlex.quote(str(Path(path).parent))
    return f"shatter label accept --project={folder}"


def confirmed_file(path: str | Path) -> Path:
    """Returns where the note about an answer file is."""
    path = Path(os.path.realpath(path))
    return path.parent / f"{path.name}.confirmed"  # the root has no name


def content_of(path: str | Path) -> bytes:
    """Reads an answer file, and checks that what was confirmed is in it.

    Args:
      path: the file; none there = nothing was answered yet.

    Returns:
      Its bytes. A file without a note, of an older version, is taken as it is.

    Raises:
      UsageError: if it cannot be read, or is not as it was confirmed; the message names the command
        that accepts it.
    """
    known = read_confirmed(path)  # first: another process may be adding lines
    try:
        content = Path(path).read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if known is None:
        return content
    begins = hashlib.sha256(content[: known.num_bytes]).hexdigest()
    if len(content) < known.num_bytes or begins != known.sha256:
        what = (
            "has changed"
            if len(content) >= known.num_bytes
            else f"has {len(content):,} of its {known.num_bytes:,} confirmed bytes"
            if os.path.lexists(path)
            else f"is missing, with {known.num_bytes:,} confirmed bytes"
        )
        raise UsageError(
            f"{path} {what}: answers that people gave may have gone. Put it back from a copy; or, "
            f"to go on with what is there: {accept_command(path)}"
        )
    return content


def is_unconfirmed(path: str | Path) -> bool:
    """Returns whether a file, of an older version, has lines but no note of what was confirmed."""
    return (
        not confirmed_file(path).exists() and Path(path).is_file() and Path(path).stat().st_size > 0
    )


def read_confirmed(path: str | Path) -> Confirmed | None:
    """Reads the note about an answer file.

    Args:
      path: the answer file.

    Returns:
      What was confirmed; None = there is no note.

    Raises:
      UsageError: if the note is damaged.
    """
    note = confirmed_file(path)
    try:
        content = note.read_bytes()
        found = json.loads(content)
        confirmed = Confirmed(found["bytes"], found["sha256"])
        if type(confirmed.num_bytes) is not int or confirmed.num_bytes < 0:
            raise ValueError("bytes is no number of bytes")
        if content != _line(confirmed):
            raise ValueError("it is not as it was written")
        return confirmed
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{note} cannot be read ({error}), so whether answers have gone from {path} cannot be "
            f"told. To go on with what is there: {accept_command(path)}"
        ) from error


def write_confirmed(path: str | Path, confirmed: Confirmed) -> None:
    """Writes the note about an answer file, whole or not at all; for the file's one writer.

    Args:
      path: the answer file.
      confirmed: what is confirmed, and on the disk already.

    Raises:
      OSError: if the system refuses; the note is then as it was.
    """
    note = confirmed_file(path)
    temporary = note.with_name(f"{note.name}.next")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(temporary, flags, 0o644), "wb") as file:
        file.write(_line(confirmed))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, note)


def _line(confirmed: Confirmed) -> bytes:
    return json.dumps({"bytes": confirmed.num_bytes, "sha256": confirmed.sha256}).encode() + b"\n"
