"""How much of an answer file was confirmed to people: a note beside it with a length and a sha256.

Because lines are only ever added, the bytes that were confirmed must stay the beginning of the
file. The note is written after the lines. If it is behind the file, no harm is done; if it is ahead
of the file, lines are missing.
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
    """Returns the command that accepts an answer file as it is."""
    folder = shlex.quote(str(Path(path).parent))
    return f"shatter label accept --project={folder}"


def confirmed_file(path: str | Path) -> Path:
    """Returns the path of the note about an answer file."""
    path = Path(os.path.realpath(path))
    return path.parent / f"{path.name}.confirmed"  # with_name fails on the root, which has no name


def content_of(path: str | Path) -> bytes:
    """Returns the bytes of an answer file; raises an error if a confirmed part is missing.

    Args:
      path: the file; if there is none, nothing was answered yet.

    Returns:
      Its bytes. A file without a note was written by an older version and is not checked.

    Raises:
      UsageError: if it cannot be read, or is not as it was confirmed; the message names the command
        that accepts it.
    """
    known = read_confirmed(path)  # before the file, because another process may be adding lines
    try:
        content = Path(path).read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if known is None:
        return content
    digest = hashlib.sha256(content[: known.num_bytes]).hexdigest()
    if len(content) < known.num_bytes or digest != known.sha256:
        change = (
            "has changed"
            if len(content) >= known.num_bytes
            else f"has {len(content):,} of its {known.num_bytes:,} confirmed bytes"
            if os.path.lexists(path)
            else f"is missing, with {known.num_bytes:,} confirmed bytes"
        )
        raise UsageError(
            f"{path} {change} (unless the note {confirmed_file(path).name} about it has changed): "
            "answers that people gave may be missing. Put the file back from a copy; or, to go on "
            f"with the answers that are there: {accept_command(path)}"
        )
    return content


def is_unconfirmed(path: str | Path) -> bool:
    """Returns whether an answer file has lines but no note, as older versions wrote none."""
    return (
        not confirmed_file(path).exists() and Path(path).is_file() and Path(path).stat().st_size > 0
    )


def read_confirmed(path: str | Path) -> Confirmed | None:
    """Reads the note about an answer file.

    Args:
      path: the answer file.

    Returns:
      What was confirmed; None if there is no note.

    Raises:
      UsageError: if the note is damaged.
    """
    note = confirmed_file(path)
    try:
        content = note.read_bytes()
        record = json.loads(content)
        confirmed = Confirmed(record["bytes"], record["sha256"])
        if type(confirmed.num_bytes) is not int or confirmed.num_bytes < 0:
            raise ValueError("bytes is not a number of bytes")
        if content != _line(confirmed):
            raise ValueError("it is not as it was written")
        return confirmed
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{note} cannot be read ({error}), so it is unknown whether answers are missing from "
            f"{path}. To go on with the answers that are there: {accept_command(path)}"
        ) from error


def write_confirmed(path: str | Path, confirmed: Confirmed) -> None:
    """Writes the note about an answer file, whole or not at all.

    Only the one writer of the answer file may call it.

    Args:
      path: the answer file.
      confirmed: what is confirmed; it must be on the disk already.

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
