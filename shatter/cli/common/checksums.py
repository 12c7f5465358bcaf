"""Checksums beside what a run may be resumed from: one flipped bit is found and named.

The files have the format of the command sha256sum, which can check them too: of a file `NAME` it is
`NAME.sha256` beside it, of a folder `SHA256SUMS` in it.
"""

import hashlib
from pathlib import Path

from shatter.cli.common.binary import UsageError
from shatter.cli.common.run_folder import write_text

SUMS = "SHA256SUMS"


def seal(path: Path) -> None:
    """Writes the checksums of a file, or of every file in a folder.

    Args:
      path: the file or folder, whole.
    """
    root, sums = _place(path)
    lines = [f"{_digest(file)}  {file.relative_to(root)}\n" for file in _files(path)]
    write_text(sums, "".join(lines))


def is_sealed(path: Path) -> bool:
    """Whether a file or folder has checksums; one that a killed process left may have none."""
    return _place(path)[1].is_file()


def verify(path: Path) -> None:
    """Compares a file or folder with its checksums; one without any passes.

    Args:
      path: the file or folder.

    Raises:
      UsageError: naming the file that differs, is missing or was added, or cannot be read.
    """
    root, sums = _place(path)
    if not is_sealed(path):
        return
    try:
        lines = [line.split("  ", 1) for line in sums.read_text().splitlines()]
        known = {name: digest for digest, name in lines}
    except ValueError as error:
        raise UsageError(f"{sums} is damaged: it holds no lines of a sha256 and a name") from error
    found = {str(file.relative_to(root)): file for file in _files(path)}
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            raise UsageError(f"{root / name} is missing: {sums.name} has its checksum")
        if name not in known:
            raise UsageError(
                f"{root / name} was not saved with the rest: {sums.name} does not list it"
            )
        try:
            digest = _digest(found[name])
        except OSError as error:
            raise UsageError(f"{root / name} cannot be read: {error.strerror}") from error
        if digest != known[name]:
            raise UsageError(
                f"{root / name} is damaged: its sha256 was {known[name]} when it was saved, as "
                f"{sums.name} has it, and is {digest}"
            )


def _place(path: Path) -> tuple[Path, Path]:
    """The folder that names are relative to, and the file of the checksums."""
    return (
        (path, path / SUMS)
        if path.is_dir()
        else (path.parent, path.with_name(path.name + ".sha256"))
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != SUMS)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
