"""Renders chat templates in a process of its own; `templates.py` runs this file as a program.

A template is a program that somebody else wrote, and jinja's sandbox limits neither its time nor
its memory. This process may use `SECONDS` of processor time for a request, and `BYTES` of memory.
When the time is over the system kills it, even in the middle of one long operation in C.

A request and its answer are one line of JSON each.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

SECONDS = 1.0
BYTES = 2**29
CHARACTERS = 10**7


class Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` around what the assistant said; its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Any) -> Any:
        """Parses the tag's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Returns jinja's sandbox with the names that transformers offers to a chat template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    # Removed because the same conversation must always become the same text.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles a template and renders it.

    Args:
      request: `source`, the template; `now`, the date in the format of ISO 8601; `variables`, the
        variables of the template, None = only compile it.

    Returns:
      `text`; or `asks_for_date` for a template that was only compiled; or `error`, with `stage`
      ("compile" or "render") and `exceeds`, whether it took too much memory.
    """
    stage = "compile"
    try:
        template = _compiled(request["source"])
        if request["variables"] is None:
            tree = _environment().parse(request["source"])
            names = jinja2.meta.find_undeclared_variables(tree)
            return {"asks_for_date": "strftime_now" in names}
        stage = "render"
        now = datetime.datetime.fromisoformat(request["now"])
        text = template.render(**request["variables"], strftime_now=now.strftime)
        text.encode()
        if len(text) > CHARACTERS:
            raise OverflowError(f"a text of {len(text)} characters, over {CHARACTERS}")
        return {"text": text}
    except Exception as error:  # a template can raise any exception
        exceeds = isinstance(error, MemoryError)
        return {"stage": stage, "error": _reason(error), "exceeds": exceeds}


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {BYTES >> 20} MiB of memory, or is nested too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    reason = str(error)[:500]
    return (
        reason if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {reason}"
    )


def main() -> None:
    """Answers requests from the standard input until it is closed."""
    with contextlib.suppress(ValueError):  # macOS has the limit, but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with open(0, "rb") as requests, open(1, "wb") as answers:
        for line in requests:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                answered = json.dumps(answer(json.loads(line)))
            except (MemoryError, RecursionError) as error:  # raised by reading a huge conversation
                reason = f"{type(error).__name__}: {error}"
                answered = json.dumps({"stage": "render", "error": reason})
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(answered.encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
