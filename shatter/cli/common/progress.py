"""A progress bar that also says something when nobody watches a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def open_console() -> Console:
    """A console for tables and progress; wide where it is no terminal: tables stay whole.

    Square brackets are text, in tables too, because names of files and folders may hold them.
    """
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of `total` units.

    Args:
      console: where it goes; without a terminal a line is printed whenever the name changes.
      total: number of units.

    Yields:
      `(name, done)`, which names what runs and adds units.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        current, finished = "", 0

        def advance(name: str, done: int) -> None:
            nonlocal current, finished
            if name != current and not console.is_terminal:
                console.print(f"[{finished}/{total}] {name}")
            current, finished = name, finished + done
            bar.update(task, description=name, advance=done)

        yield advance
