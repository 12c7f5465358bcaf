"""Chat templates: jinja programs by other people, compiled and rendered within bounds."""

import atexit
import contextlib
import datetime
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHAT_TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content or '' }}"
        "{% for call in message.tool_calls or [] %}"
        "{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ (call.function or call) | tojson }}{% endfor %}"
        "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
    )
}
"""Chat templates by name, for tokenizers without one: `plain` is a line "Role: content" a message,
with every tool call as a line of JSON, without special tokens."""

MAX_SOURCE = 10**6
"""Characters of a template, at most; the longest in use have some ten thousand."""

MAX_FAILURES = 3
"""Conversations in a row on which a template may exceed its bounds before it is given up: a file
of many rows would wait a second for each."""

WAIT = 60.0
"""Seconds for an answer, which takes a second of the processor's time at most."""


class TemplateError(ValueError):
    """A template that cannot be compiled; or, where `compiled`, that does not render."""

    def __init__(self, message: str, *, compiled: bool) -> None:
        super().__init__(message)
        self.compiled = compiled


@functools.lru_cache(maxsize=64)
def check_template(source: str) -> bool:
    """Compiles a template.

    Args:
      source: jinja source.

    Returns:
      Whether the template uses `strftime_now`, so that what it renders depends on the date.

    Raises:
      TemplateError: if it is no jinja, or compiling it takes more than the bounds of `render`.
      ImportError: without jinja2.
    """
    return bool(_ask(source, None, None)["asks_for_date"])


def render(source: str, variables: Mapping[str, Any], now: datetime.datetime) -> str:
    """Renders a template in jinja's sandbox, in a process of its own.

    Bounded are time (a second of the processor's), memory (512 MiB) and the length of the text
    (10^7 characters), whatever the template does: endless loops and recursion, huge powers, widths
    and copies end with an error; after three of them in a row it comes without a further try. The
    filter `random` and `lipsum` are not there.

    Args:
      source: jinja source.
      variables: what the template sees, as JSON has it.
      now: the date of `strftime_now`.

    Returns:
      The text.

    Raises:
      TemplateError: if the template is no jinja, raises anything, or exceeds a bound.
      ImportError: without jinja2.
    """
    return str(_ask(source, variables, now)["text"])


def _ask(
    source: str, variables: Mapping[str, Any] | None, now: datetime.datetime | None
) -> dict[str, Any]:
    if importlib.util.find_spec("jinja2") is None:
        raise ImportError(
            "a chat template needs the package jinja2: pip install 'shatter-lm[pretrained]'"
        )
    if len(source) > MAX_SOURCE:
        found = f"it has {len(source)} characters, at most {MAX_SOURCE} are expected"
        raise TemplateError(found, compiled=False)
    try:
        source.encode()
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair at character {error.start}"
        raise TemplateError(found, compiled=False) from error
    request = {"source": source, "variables": variables, "now": now and now.isoformat()}
    try:
        line = json.dumps(request, default=str).encode() + b"\n"
    except (RecursionError, TypeError, ValueError) as error:
        raise TemplateError(f"a conversation that is no JSON ({error})", compiled=True) from error
    with _LOCK:
        failures = _failures.pop(source, [])
        if len(failures) < MAX_FAILURES:
            answer = _exchange(line, "compile" if variables is None else "render")
            failures = [*failures, answer] if answer.get("exceeds") else []
        if failures:
            answer = failures[-1]
            _failures[source] = failures
    if "error" in answer:
        raise TemplateError(answer["error"], compiled=answer["stage"] != "compile")
    return answer


_LOCK = threading.Lock()
_failures: dict[str, list[dict[str, Any]]] = {}
"""The answers on which a template exceeded its bounds, those since it last did not."""
_worker: tuple[int, subprocess.Popen[bytes]] | None = None
"""The process that renders, and the process that started it: a fork of that starts its own."""


def _exchange(line: bytes, stage: str) -> dict[str, Any]:
    """Sends a request and waits for its answer; a worker that a template has ended is replaced."""
    worker = _running_worker()
    assert worker.stdin is not None and worker.stdout is not None
    deadline, received = time.monotonic() + WAIT, bytearray()
    try:
        worker.stdin.write(line)
        worker.stdin.flush()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([worker.stdout], [], [], left)[0]:
                return _ended(f"no answer within {WAIT:.0f} seconds", stage)
            part = os.read(worker.stdout.fileno(), 1 << 20)
            if not part:
                return _ended("", stage)
            received += part
    except BrokenPipeError:
        return _ended("", stage)
    except BaseException:  # an answer that nobody waits for must not answer the next request
        _stop()
        raise
    answer: dict[str, Any] = json.loads(received)
    return answer


def _running_worker() -> subprocess.Popen[bytes]:
    global _worker
    if _worker is None or _worker[0] != os.getpid() or _worker[1].poll() is not None:
        _stop()
        file = str(Path(__file__).with_name("template_worker.py"))
        process = subprocess.Popen(
            [sys.executable, "-P", file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for us; the worker ends when its input does
        )
        _worker = os.getpid(), process
    return _worker[1]


def _ended(reason: str, stage: str) -> dict[str, Any]:
    """What is said of a worker that gives no answer."""
    code = _stop()
    if code == -signal.SIGPROF:
        reason = "it takes more than a second of the processor's time: does it loop for ever?"
    reason = reason or f"its process ended (exit status {code})"
    return {"stage": stage, "error": reason, "exceeds": True}


def _stop() -> int | None:
    """Ends the worker; returns the exit status that it had already."""
    global _worker
    if _worker is None or _worker[0] != os.getpid():
        return None
    process, _worker = _worker[1], None
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # a request that a dead worker never took
        process.stdin.close()
    try:
        return process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


atexit.register(_stop)
