"""Runs a module as `python -m` does, and ends the process by SIGKILL at its n-th file event.

`python -m tests.campaigns.killer NUMBER FOLDER MODULE ARGUMENTS`. Events are what python does to
files below the folder: opening for writing (before and after), renaming, removing, making folders,
waiting for the disk, writing to a descriptor. With number 0 nothing is killed; the number of events
is written into FOLDER.events at the end. A name in place of the number: the first event about a
file whose name has it.
"""

import atexit
import builtins
import io
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

NAMED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def main() -> None:
    """Runs the module under watch."""
    when, folder, module = sys.argv[1], os.path.realpath(sys.argv[2]), sys.argv[3]
    sys.argv = [module, *sys.argv[4:]]
    count = 0

    def event(path: Any) -> None:
        nonlocal count
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return
        if isinstance(path, bytes | str | os.PathLike) and os.fsdecode(path).startswith(folder):
            count += 1
            is_named = not when.isdigit() and when in Path(os.fsdecode(path)).name
            if is_named or f"{count}" == when:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, about: tuple[Any, ...]) -> None:
        if name in NAMED:
            event(about[0])
        elif name == "open" and isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR):
            event(about[0])

    def after(original: Any) -> Any:
        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            result = original(file, mode, *rest, **more)
            if set(mode) & set("wax+"):
                event(file)  # it is there, and empty
            return result

        return opened

    def before(original: Any) -> Any:
        def called(descriptor: int, *rest: Any) -> Any:
            event(descriptor)
            return original(descriptor, *rest)

        return called

    sys.addaudithook(audit)
    builtins.open = io.open = after(io.open)
    os.fsync, os.write = before(os.fsync), before(os.write)
    if when == "0":
        atexit.register(lambda: Path(f"{folder}.events").write_text(f"{count}"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
