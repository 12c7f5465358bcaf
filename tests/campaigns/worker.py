"""Tries cases in a process of their own, with a limit of time and memory for each.

`python -m tests.campaigns.worker MODULE FUNCTION SECONDS BYTES` reads the cases as JSON, calls the
function on each, and writes what it returned, a line of JSON each. A case that is over its time is
ended by a signal; the process is then begun again with the next case.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def try_apart(
    module: str, function: str, cases: Sequence[Any], *, seconds: int = 20, memory: int = 6 * 2**30
) -> list[str | None]:
    """Calls a function on every case in another process.

    Args:
      module: where the function is.
      function: its name; takes a case, returns None or a fault.
      cases: what JSON can hold, NaN included.
      seconds: that a case may take.
      memory: bytes of address space of the process.

    Returns:
      None or a fault for every case; a case that ended the process has the reason as its fault.
    """
    faults: list[str | None] = []
    while len(faults) < len(cases):
        limits = (str(seconds), str(memory))
        child = subprocess.run(
            [sys.executable, "-m", "tests.campaigns.worker", module, function, *limits],
            input=json.dumps(cases[len(faults) :]),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        faults += [json.loads(line[1:]) for line in child.stdout.splitlines() if line[:1] == "\t"]
        if child.returncode == -signal.SIGALRM:
            faults.append(f"takes more than {seconds} s")
        elif child.returncode:
            last = (child.stderr.strip().splitlines() or [""])[-1]
            faults.append(f"ends the process with status {child.returncode}: {last[:200]}")
    return faults


def command(
    place: Path, arguments: Sequence[str], kill_at: int | str | None = None, keys: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a module with its files below a place; `kill_at` as of `tests.campaigns.killer`."""
    head = [] if kill_at is None else ["tests.campaigns.killer", str(kill_at), str(place)]
    own = {"XDG_CACHE_HOME": str(place / "cache"), "JAX_PLATFORMS": "cpu"}
    own |= {"MPLCONFIGDIR": str(place.parent / "matplotlib")}  # its list of fonts takes seconds
    return subprocess.run(
        [sys.executable, "-m", *head, *arguments],
        cwd=ROOT,
        env={**os.environ, **own},
        input=keys,
        capture_output=True,
        text=True,
        timeout=300,
    )


def main() -> None:
    """Reads cases, writes faults."""
    module, function, seconds, memory = sys.argv[1:]
    call = getattr(importlib.import_module(module), function)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    for case in json.load(sys.stdin):
        signal.alarm(int(seconds))
        fault = call(case)
        signal.alarm(0)
        print("\t" + json.dumps(fault), flush=True)


if __name__ == "__main__":
    main()
