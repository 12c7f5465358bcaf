"""The console, and a progress bar that also works where there is no terminal."""

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


def open_console(*, quiet: bool = False) -> Console:
    """Returns a console for tables and progress; a quiet one shows nothing.

    It is wide where there is no terminal, so that tables are not folded. Square brackets are text
    and not markup, in tables too, because names of files and folders may contain them.
    """
    console = Console(highlight=False, markup=False, quiet=quiet)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, quiet=quiet, width=160)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[str, int], None]]:
    """Shows a progress bar.

    Args:
      console: where to show it; without a terminal a line is printed whenever the name changes.
      total: the number of units of the whole bar.

    Yields:
      `(name, done)`: shows the name of the present work and adds to the units done.
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
