"""The tables that the subcommands print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from shatter.cli.label.display import cell, turns
from shatter.cli.label.queries import TextQuery
from shatter.data.layouts import Text


def queries(batch: Sequence[TextQuery]) -> Table:
    """Returns a table of the first ten queries of a batch, with the information gain of each."""
    table = Table(
        title=cell(f"round {batch[0].round}, {batch[0].arm}; nats: what its answer alone tells"),
        title_justify="left",
    )
    table.add_column("query", no_wrap=True, min_width=10)
    table.add_column("nats", no_wrap=True, min_width=5, justify="right")
    for name in ("prompt", "completions"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for query in batch[:10]:
        texts = " | ".join(_start(text) for text in query.completions)
        nats = f"{query.score:.3f}"
        table.add_row(cell(query.query_id), nats, cell(_start(query.prompt)), cell(texts))
    return table


def metrics(folder: Path, history: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of a project's measures at the start and now."""
    table = Table(title=cell(f"{folder}: before and after"), title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in history[-1].items():
        if not isinstance(value, str):
            form = "d" if isinstance(value, int) else ".4f"
            before = f"{history[0][name]:{form}}" if name in history[0] else ""
            table.add_row(cell(name), before, f"{value:{form}}")
    return table


def _start(text: Text) -> str:
    """Returns the first 60 characters of a text on one line."""
    return " ".join(" ".join(content for _, content in turns(text)).split())[:60]
