"""Freed memory stays with the process, so that the same step does not fault its pages again."""

import ctypes
import subprocess
import sys

import pytest

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
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="needs the GNU C library",
)
def test_the_pages_of_freed_arrays_are_used_again():
    assert faults("keep") < 100
    assert faults("default") > 100  # huge pages or not: at least 32 a 64 MiB array


def test_elsewhere_nothing_happens(monkeypatch):
    from shatter.cli.common import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("called"))
    memory.keep_freed_memory()
