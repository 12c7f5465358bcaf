"""A person answers in the terminal."""

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
from shatter.cli.label.asking import Choice, Standing
from shatter.cli.label.display import say, turns, visible
from shatter.cli.label.queries import Asked
from shatter.cli.label.writer import NotRecorded, Writer
from shatter.data.layouts import Text

MAX_WIDTH = 100  # columns of text
MAX_RESPONSES = 9  # one key each
TOO_SOON = 0.2  # seconds; a key pressed before a query could be seen is no answer to it

ReadKey = Callable[[], str]
"""Waits for a key; the empty text = there are no more."""


def answer_in_terminal(
    queries: Mapping[str, Asked],
    writer: Writer,
    *,
    annotator: str,
    seed: int,
    console: Console,
    read_key: ReadKey,
) -> Standing:
    """Asks one annotator until all queries are answered or skipped, or the annotator quits.

    Args:
      queries: what is asked, in order; what the annotator answered or skipped before is left out.
      writer: where answers go, each before the next query is shown.
      annotator: who answers.
      seed: the seed of the order in which responses are shown.
      console: where it is shown.
      read_key: of `open_keys`.

    Returns:
      Where the annotator stands at the end.

    Raises:
      UsageError: if a query has more responses than there are keys.
    """
    for query in queries.values():
        if len(query.completions) > MAX_RESPONSES:
            raise UsageError(
                f"{query.source}: the terminal shows at most {MAX_RESPONSES} responses, found "
                f"{len(query.completions)}: answer with --web"
            )
    place = asking.standing(queries, writer.events, annotator)
    while place.query is not None:
        order = asking.display_order(place.query, annotator=annotator, seed=seed)
        _show(console, place, order)
        if not _answered(place, order, writer, annotator, console, read_key):
            break
        place = asking.standing(queries, writer.events, annotator)
    over = "All done" if place.query is None else "Stopped"
    say(console, f"{over}: {place}. Answers in {writer.path}")
    return place


def _answered(
    place: Standing,
    order: tuple[int, ...],
    writer: Writer,
    annotator: str,
    console: Console,
    read_key: ReadKey,
) -> bool:
    """Reads keys until one is recorded; false if the annotator quits."""
    query, shown = place.query, time.monotonic()
    assert query is not None
    while True:
        try:
            key = read_key().lower()
        except KeyboardInterrupt:
            return False
        if key in ("", "q"):
            return False
        choices: dict[str, Choice] = {str(n + 1): n for n in range(len(order))}
        choices |= {"t": "tie", "s": "skip"}
        seconds = time.monotonic() - shown
        try:
            if key in choices:
                event = asking.answer(
                    query, choices[key], annotator=annotator, order=order, seconds=seconds
                )
                writer.append(event)
                return True
            if key == "u" and place.last is not None:
                writer.append(asking.undo(place.last))
                return True
        except NotRecorded as error:
            console.print(visible(f"error: {error}"), markup=False, style="bold red")
            continue
        unknown = "Nothing to undo. " if key == "u" else ""
        console.print(f"{unknown}{_help(len(order))}", markup=False)


def _help(num: int) -> str:
    numbers = " ".join(str(n + 1) for n in range(num))
    return f"Keys: {numbers} = the best, t = tie, s = skip, u = undo, q = quit"


def _show(console: Console, place: Standing, order: tuple[int, ...]) -> None:
    query = place.query
    assert query is not None
    width = min(console.width, MAX_WIDTH)
    console.print()
    console.print(Styled(f"{place}", style="bold"))
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
    """Reads single keys from a terminal, or lines from anything else.

    Yields:
      The function that waits for a key. On a terminal it drops what was typed before it was asked.
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
