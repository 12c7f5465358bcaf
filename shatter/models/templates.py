"""Compiles and renders chat templates, within bounds because other people have written them."""

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
"""Chat templates by name, for tokenizers without one. `plain` writes a line "Role: content" for
every message and a line of JSON for every tool call, without special tokens."""

MAX_SOURCE = 10**6
"""The largest number of characters of a template; the longest in use have about ten thousand."""

MAX_FAILURES = 3
"""How many times in a row a template may exceed its bounds before it is no longer tried. A file of
many conversations would otherwise wait a second for each of them."""

WAIT = 60.0
"""Seconds to wait for an answer, which takes at most one second of processor time."""


class TemplateError(ValueError):
    """A template cannot be compiled, or, if `compiled` is true, cannot be rendered."""

    def __init__(self, message: str, *, compiled: bool) -> None:
        super().__init__(message)
        self.compiled = compiled


@functools.lru_cache(maxsize=64)
def check_template(source: str) -> bool:
    """Compiles a template, and returns whether its text depends on the date (`strftime_now`).

    Args:
      source: the template, in jinja.

    Raises:
      TemplateError: if it is not valid jinja, or compiling it exceeds the bounds of `render`.
      ImportError: if jinja2 is missing.
    """
    return bool(_ask(source, None, None)["asks_for_date"])


def render(source: str, variables: Mapping[str, Any], now: datetime.datetime) -> str:
    """Renders a template in jinja's sandbox, in a process of its own.

    The template may use one second of processor time and 512 MiB of memory, and its text may have
    10^7 characters. Endless loops, deep recursion and huge strings or numbers therefore end with an
    error; after three such errors in a row the template is not tried again. The filter `random` and
    the function `lipsum` are removed.

    Args:
      source: the template, in jinja.
      variables: the variables of the template, values that JSON can hold.
      now: the date for `strftime_now`.

    Returns:
      The text.

    Raises:
      TemplateError: if the template is not valid jinja, raises an error, or exceeds a bound.
      ImportError: if jinja2 is missing.
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
        reason = f"expected at most {MAX_SOURCE} characters, found {len(source)}"
        raise TemplateError(reason, compiled=False)
    try:
        source.encode()
    except UnicodeEncodeError as error:
        found = f"found half a surrogate pair at character {error.start}"
        reason = f"expected text that UTF-8 can hold, {found}"
        raise TemplateError(reason, compiled=False) from error
    request = {"source": source, "variables": variables, "now": now and now.isoformat()}
    try:
        line = json.dumps(request, default=str).encode() + b"\n"
    except (RecursionError, TypeError, ValueError) as error:
        raise TemplateError(f"the conversation is not JSON ({error})", compiled=True) from error
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
"""The latest answers for a template that has exceeded its bounds ever since, by its source."""
_worker: tuple[int, subprocess.Popen[bytes]] | None = None
"""The id of the process that started the worker, and the worker. A fork starts its own worker."""


def _exchange(line: bytes, stage: str) -> dict[str, Any]:
    """Sends a request to the worker and waits for the answer; a dead worker is replaced first."""
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
    except BaseException:  # its late answer must not be taken for that of the next request
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
            start_new_session=True,  # so that Ctrl-C does not reach it; it ends when its input does
        )
        _worker = os.getpid(), process
    return _worker[1]


def _ended(reason: str, stage: str) -> dict[str, Any]:
    """Stops a worker that gives no answer, and returns the answer in its place."""
    code = _stop()
    if code == -signal.SIGPROF:
        reason = "it takes more than one second of processor time: does it loop for ever?"
    reason = reason or f"its process ended (exit status {code})"
    return {"stage": stage, "error": reason, "exceeds": True}


def _stop() -> int | None:
    """Ends the worker, and returns its exit status if it had ended by itself."""
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
