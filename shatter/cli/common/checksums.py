"""Checksums of files that a run may be resumed from, so that a single flipped bit is found.

They have the format of the command sha256sum, which can check them too. Those of a file `NAME` are
in `NAME.sha256` beside it, those of a folder in its file `SHA256SUMS`.
"""

import hashlib
from pathlib import Path

from shatter.cli.common.binary import UsageError
from shatter.data.atomic import write_atomically

SUMS = "SHA256SUMS"


def seal(path: Path) -> None:
    """Writes the checksum of a file, or of every file in a folder.

    Args:
      path: the file or folder, complete.
    """
    root, sums = _place(path)
    lines = [f"{_digest(file)}  {file.relative_to(root)}\n" for file in _files(path)]
    write_atomically(sums, "".join(lines).encode())


def is_sealed(path: Path) -> bool:
    """Returns whether a file or folder has checksums; a killed process may not have written any."""
    return _place(path)[1].is_file()


def verify(path: Path) -> None:
    """Compares a file or folder with its checksums; one without checksums passes.

    Args:
      path: the file or folder.

    Raises:
      UsageError: naming the file that differs, is missing, was added, or cannot be read.
    """
    root, sums = _place(path)
    if not is_sealed(path):
        return
    try:
        lines = [line.split("  ", 1) for line in sums.read_text().splitlines()]
        recorded = {name: digest for digest, name in lines}
    except ValueError as error:
        raise UsageError(
            f"{sums} is damaged: expected lines of a sha256 and a file name"
        ) from error
    present = {str(file.relative_to(root)): file for file in _files(path)}
    for name in sorted(recorded.keys() | present.keys()):
        if name not in present:
            raise UsageError(f"{root / name} is missing: {sums.name} has its checksum")
        if name not in recorded:
            raise UsageError(
                f"{root / name} was not saved with the rest: {sums.name} does not list it"
            )
        try:
            digest = _digest(present[name])
        except OSError as error:
            raise UsageError(f"{root / name} cannot be read: {error.strerror}") from error
        if digest != recorded[name]:
            raise UsageError(
                f"{root / name} is damaged: its sha256 was {recorded[name]} when it was saved, "
                f"according to {sums.name}, and is {digest} now"
            )


def _place(path: Path) -> tuple[Path, Path]:
    """Returns the folder that names are relative to, and the file of the checksums."""
    if path.is_dir():
        return path, path / SUMS
    return path.parent, path.with_name(f"{path.name}.sha256")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != SUMS)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
