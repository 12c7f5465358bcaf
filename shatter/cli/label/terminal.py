"""Answering queries in the terminal."""

import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text as Styled

from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.asking import Choice, Progress
from shatter.cli.label.display import say, turns, visible
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.writer import NotRecorded, Writer
from shatter.data.layouts import Text

MAX_WIDTH = 100  # columns of text
MAX_RESPONSES = 9  # because each has one key
TOO_SOON = 0.2  # seconds; a key pressed before anybody could see the query does not answer it

ReadKey = Callable[[], str]
"""Waits for a key and returns it; returns the empty text when the input has ended."""


def answer_in_terminal(
    queries: Mapping[str, TextQuery],
    writer: Writer,
    *,
    annotator: str,
    seed: int,
    console: Console,
    read_key: ReadKey,
) -> Progress:
    """Asks one annotator until all queries are answered or skipped, or the annotator quits.

    Args:
      queries: all queries, in order; those that the annotator has answered or skipped are left out.
      writer: records every answer before the next query is shown.
      annotator: who answers.
      seed: the seed of the order in which responses are shown.
      console: where the queries are shown.
      read_key: the reader of `open_keys`.

    Returns:
      How far the annotator has got at the end.

    Raises:
      UsageError: if a query has more responses than there are keys.
    """
    for query in queries.values():
        if len(query.completions) > MAX_RESPONSES:
            raise UsageError(
                f"{query.source}: the terminal shows at most {MAX_RESPONSES} responses, found "
                f"{len(query.completions)}: answer with --web"
            )
    progress = asking.progress_of(queries, writer.events, annotator)
    while progress.query is not None:
        order = asking.display_order(progress.query, annotator=annotator, seed=seed)
        _show(console, progress, progress.query, order)
        if not _record_next(progress, progress.query, order, writer, annotator, console, read_key):
            break
        progress = asking.progress_of(queries, writer.events, annotator)
    ending = "All done" if progress.query is None else "Stopped"
    say(console, f"{ending}: {progress}. Answers in {writer.path}")
    return progress


def _record_next(
    progress: Progress,
    query: TextQuery,
    order: tuple[int, ...],
    writer: Writer,
    annotator: str,
    console: Console,
    read_key: ReadKey,
) -> bool:
    """Reads keys until one is recorded; returns false if the annotator quits."""
    shown_at = time.monotonic()
    choices: dict[str, Choice] = {str(n + 1): n for n in range(len(order))}
    choices |= {"t": "tie", "s": "skip"}
    while True:
        try:
            key = read_key().lower()
        except KeyboardInterrupt:
            return False
        if key in ("", "q"):
            return False
        seconds = time.monotonic() - shown_at
        try:
            if key in choices:
                event = asking.answer(
                    query, choices[key], annotator=annotator, order=order, seconds=seconds
                )
                writer.append(event)
                return True
            if key == "u" and progress.last is not None:
                writer.append(asking.undo(progress.last))
                return True
        except NotRecorded as error:
            console.print(visible(f"error: {error}"), markup=False, style="bold red")
            continue
        unknown = "Nothing to undo. " if key == "u" else ""
        console.print(f"{unknown}{_help(len(order))}", markup=False)


def _help(num: int) -> str:
    numbers = " ".join(str(n + 1) for n in range(num))
    return f"Keys: {numbers} = the best, t = tie, s = skip, u = undo, q = quit"


def _show(console: Console, progress: Progress, query: TextQuery, order: tuple[int, ...]) -> None:
    width = min(console.width, MAX_WIDTH)
    console.print()
    console.print(Styled(f"{progress}", style="bold"))
    if query.prompt:
        prompt = Panel(
            _styled(query.prompt), title="Prompt", title_align="left", box=box.HEAVY, width=width
        )
        console.print(prompt)
    for n, k in enumerate(order):
        panel = Panel(
            _styled(query.completions[k]),
            title=Styled(f" {n + 1} ", style="bold reverse"),
            title_align="left",
            box=box.ROUNDED,
            width=width,
        )
        console.print(panel)
    console.print(_help(len(order)), markup=False)


def _styled(text: Text) -> Styled:
    parts = Styled()
    for n, (role, content) in enumerate(turns(text)):
        parts.append("\n\n" if n else "")
        parts.append(f"{role}\n" if role else "", style="bold cyan")
        parts.append(visible(content))
    return parts


@contextmanager
def open_keys() -> Iterator[ReadKey]:
    """Opens the standard input for single keys, or for lines if it is no terminal.

    Yields:
      The function that waits for a key. On a terminal it drops keys that were typed too early.
    """
    if not sys.stdin.isatty():
        yield _read_line
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read_key() -> str:
        time.sleep(TOO_SOON)
        termios.tcflush(descriptor, termios.TCIFLUSH)
        keys = os.read(descriptor, 64).decode(errors="replace")
        is_end = keys in ("", "\x04")
        # Arrows and the like are several characters, some of them digits.
        return "" if is_end else keys if keys[0] == "\x1b" else keys[0]

    try:
        # For the whole session, so that keys typed too early are not shown between the panels.
        tty.setcbreak(descriptor)
        yield read_key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _read_line() -> str:
    """Returns the next line that is not blank."""
    for line in sys.stdin:
        if line.strip():
            return line.strip()
    return ""
