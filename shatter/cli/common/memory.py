"""How the process gives memory back to the system."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Their numbers in malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_MOST_KEPT = 0.25  # of the machine's memory
_SECONDS = 0.5  # between two looks at it
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of malloc.h; `uordblks` is how many bytes are in use."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    )


def keep_freed_memory() -> None:
    """Makes the C library keep large blocks that are freed, for the next ones of their size.

    By default it maps the arrays of every step anew, and the system clears each page again when it
    is first touched. With models of 100 million parameters on a CPU that is a fifth of the time of
    a training step. Programs of many shapes leave holes that no other fits, so that what is kept is
    given back whenever it is more than a quarter of the machine's memory. Call it before jax starts
    its threads. It has no effect without the GNU C library.
    """
    if not sys.platform.startswith("linux"):
        return
    library: Any = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        library.mallopt(option, value)
    if hasattr(library, "mallinfo2"):  # glibc 2.33
        library.mallinfo2.restype = _Mallinfo2
        most = int(_MOST_KEPT * _machine_bytes())
        threading.Thread(target=_watch, args=(library, most), daemon=True).start()


def _watch(library: Any, most: int) -> None:
    """Looks now and then whether too much is kept, as long as the process lives."""
    while True:
        time.sleep(_SECONDS)
        _give_back(library, most)


def _give_back(library: Any, most: int) -> None:
    """Gives freed memory back to the system if more than so many bytes of it are kept."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident - library.mallinfo2().uordblks > most:
        library.malloc_trim(0)


def _machine_bytes() -> int:
    """Returns the memory of the machine, or what the process's control group may have of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else ""
    return min(physical, int(limit)) if limit.isdigit() else physical
