"""Several processes that make one run together, one or more on each machine.

jax.distributed is the engine: it finds the processes of SLURM, GKE and Open MPI, watches over them,
and ends all of them when one has ended. Every process runs the same program. The first one alone
reads and writes the files of the run, and tells the others what it has found.
"""

import os
import pickle
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from shatter.cli.common.binary import UsageError, advice_about, show_error

Value = TypeVar("Value")

_TOLERANCE = 60  # seconds that jax waits longer than we do, so that the message is ours


class Cluster(NamedTuple):
    """Where the processes of a run meet.

    Attributes:
      coordinator_address: HOST:PORT of the first process; None = SLURM, GKE or Open MPI says it.
      num_processes: how many processes there are; None likewise.
      process_id: the number of this process, from 0; None likewise.
      initialization_timeout: seconds to wait for the other processes.
      heartbeat_timeout: seconds after which a process that is silent counts as ended.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 100


def check_cluster(cluster: Cluster) -> None:
    """Raises an error if the flags of several processes do not fit together.

    Raises:
      UsageError: naming the flags and what was found.
    """
    given = {name: getattr(cluster, name) for name in Cluster._fields[:3]}
    found = ", ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
    if None in given.values():
        if found:
            raise UsageError(
                "--coordinator_address, --num_processes and --process_id belong together: give all "
                f"three, or none of them under SLURM, GKE or Open MPI; found {found}"
            )
        return
    address, num, number = given.values()
    if not (match := re.fullmatch(r"(.+):(\d{1,5})", address)) or not 0 < int(match[2]) < 2**16:
        raise UsageError(f"--coordinator_address must be HOST:PORT, found {address!r}")
    if number >= num:
        raise UsageError(f"--process_id must be below --num_processes={num}, found {number}")


@contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Makes this process one of several, until the block ends.

    If the block ends with an error, this process ends at once and not by an exception, because at
    its ordinary exit jax waits for the other processes, which may be waiting for this one. The
    others end as soon as they miss it.

    Args:
      cluster: where the processes meet, checked; None = there is one process, and nothing is done.

    Yields:
      Nothing.
    """
    if cluster is None:
        yield
        return
    try:
        _connect(cluster)
        yield
    except BaseException as error:
        where = "" if cluster.process_id is None else f"process {cluster.process_id}: "
        if (advice := advice_about(error)) is None:
            traceback.print_exc()
            advice = "it failed as shown above, and the other processes end too"
            if isinstance(error, jax.errors.JaxRuntimeError):
                advice = (
                    "it failed as shown above. If it lost a connection, another process has ended "
                    "before, and its messages say why; then give the same command to all again, "
                    "and the run goes on from its newest checkpoint"
                )
        show_error(where + advice)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _connect(cluster: Cluster) -> None:
    """Joins the other processes.

    jax aborts a process that waits in vain, so that it waits in a thread, and longer than we do.

    Raises:
      UsageError: if the others do not answer in time, or nothing says where they are.
    """
    errors: list[BaseException] = []
    address, num, number = cluster[:3]
    # On CPUs programs could overtake each other, and two processes then wait for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    def connect() -> None:
        try:
            jax.distributed.initialize(
                address,
                num,
                number,
                cluster_detection_method=None if address is None else "deactivate",
                initialization_timeout=cluster.initialization_timeout + _TOLERANCE,
                heartbeat_timeout_seconds=cluster.heartbeat_timeout,
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(cluster.initialization_timeout)
    if errors and isinstance(errors[0], ValueError) and address is None:
        raise UsageError(
            f"--multihost found no processes of SLURM, GKE or Open MPI ({errors[0]}): pass "
            "--coordinator_address=HOST:PORT of the first process, --num_processes and --process_id"
        )
    reason = f" ({errors[0]})" if errors else ""
    if errors or thread.is_alive():
        where = "of the environment" if address is None else f"{address}, {num} of them expected"
        raise UsageError(
            f"the processes did not meet within {cluster.initialization_timeout} s at the "
            f"coordinator {where}{reason}: start all of them with the address of the machine of "
            "process 0 and a port that is free there and open to the others, or raise "
            "--initialization_timeout"
        )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which jax would catch and only take note of
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} {jax.default_backend()} devices. If a process ends early, jax ends "
        f"the others within about {cluster.heartbeat_timeout} s; then give the same command to all "
        "again, and the run goes on from its newest checkpoint.",
        file=sys.stderr,
        flush=True,
    )


def is_first() -> bool:
    """Returns whether this process is the one that writes files."""
    return jax.process_index() == 0


def first(function: Callable[[], Value]) -> Value:
    """Calls a function in the first process only, and returns its value in all of them.

    Args:
      function: takes nothing; its value can be pickled.

    Returns:
      The value.

    Raises:
      UsageError: in all processes, if the function raises one.
    """
    if jax.process_count() == 1:
        return function()
    content = b""
    if is_first():
        try:
            content = pickle.dumps((function(), None))
        except UsageError as error:
            content = pickle.dumps((None, error))
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content), np.int32)))
    padded = np.frombuffer(content or bytes(length), np.uint8)
    value, failure = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if failure is not None:
        raise failure
    return value


def together(function: Callable[[], Value]) -> Value:
    """Calls a function in every process, and goes on only if it succeeds in all.

    Args:
      function: takes nothing, and does not communicate.

    Returns:
      Its value in this process.

    Raises:
      UsageError: in all processes, if the function raises one in any.
    """
    if jax.process_count() == 1:
        return function()
    value, failure = None, None
    try:
        value = function()
    except UsageError as error:
        failure = error
    flags = multihost_utils.process_allgather(np.asarray(failure is not None))
    if failure is not None:
        raise failure
    if flags.any():
        failed = ", ".join(map(str, np.flatnonzero(flags)))
        raise UsageError(f"process {failed} failed: its own message says why")
    return value  # type: ignore[return-value]


def assert_same(facts: Mapping[str, Any]) -> None:
    """Raises an error if the processes were given different flags, models or data.

    Args:
      facts: what they must share, by name.

    Raises:
      UsageError: in all processes, naming what differs.
    """
    wanted = first(lambda: dict(facts))

    def compare() -> None:
        differing = [
            f"{name}: {facts.get(name)!r}, and {wanted.get(name)!r} in process 0"
            for name in sorted(facts.keys() | wanted.keys())
            if facts.get(name) != wanted.get(name)
        ]
        if differing:
            raise UsageError(
                f"process {jax.process_index()} has other inputs than process 0 "
                f"({'; '.join(differing)}): give all processes the same flags, model and files"
            )

    together(compare)


def fetch(tree: Any) -> Any:
    """Copies arrays to the host, whole, in every process.

    Args:
      tree: arrays on the devices, whichever part of them each process holds.

    Returns:
      The arrays, by numpy.
    """

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)
