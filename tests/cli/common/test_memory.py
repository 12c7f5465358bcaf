"""Freed memory stays with the process, so that the same step does not fault its pages again."""

import ctypes
import subprocess
import sys

import pytest

ON_GLIBC = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="needs the GNU C library",
)

PROGRAM = """
import resource
import sys

import numpy as np

from shatter.cli.common import memory

if sys.argv[1] == "keep":
    memory.keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(64 * 2**20, np.uint8)
before = faults()
for _ in range(4):
    np.ones(64 * 2**20, np.uint8)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Returns the page faults of four arrays of 64 MiB after the first one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@ON_GLIBC
def test_the_pages_of_freed_arrays_are_used_again():
    assert faults("keep") < 100
    assert faults("default") > 100  # huge pages or not: at least 32 a 64 MiB array


HOLES = """
import sys
import time

import numpy as np

from shatter.cli.common import memory

memory._MOST_KEPT, memory._SECONDS = float(sys.argv[1]), 0.05
memory.keep_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
blocks = [(np.ones(8 * 2**20, np.uint8), np.ones(2**16, np.uint8)) for _ in range(32)]
between = [small for _, small in blocks]  # so that no hole is at the top of the heap
del blocks
time.sleep(1.0)
print(resident() - before)
"""


@ON_GLIBC
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(("share", "is_kept"), [(0.0, False), (1.0, True)])
def test_holes_are_given_back_where_too_much_is_kept(share: float, is_kept: bool):
    run = [sys.executable, "-c", HOLES, str(share)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 128 * 2**20) == is_kept  # of 256 MiB that were freed


def test_elsewhere_nothing_happens(monkeypatch):
    from shatter.cli.common import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("called"))
    memory.keep_freed_memory()
