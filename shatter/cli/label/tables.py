"""The tables that the subcommands print."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from shatter.cli.label.display import cell, turns
from shatter.cli.label.forecasts import COVERAGES, HORIZON, Forecast
from shatter.cli.label.inputs import OF_POOL
from shatter.cli.label.queries import TextQuery
from shatter.data.layouts import Text


def queries(batch: Sequence[TextQuery]) -> Table:
    """Returns a table of the first ten queries of a batch, with the information gain of each."""
    arms = sorted({query.arm for query in batch}, key=[query.arm for query in batch].count)[::-1]
    title = f"round {batch[0].round}, {' and '.join(arms)}; nats: what its answer alone tells"
    table = Table(title=cell(title), title_justify="left")
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
        if not isinstance(value, str) and not name.startswith(f"{OF_POOL}/"):
            form = "d" if isinstance(value, int) else ".4f"
            before = f"{history[0][name]:{form}}" if name in history[0] else ""
            table.add_row(cell(name), before, f"{value:{form}}")
    return table


def forecast(found: Forecast) -> Table:
    """Returns a table of what the audits say: the loss now, and what more labels would bring."""
    title = f"by {found.audits} audits, after {found.labels} labels; next batch: {found.batch}"
    table = Table(title=cell(title), title_justify="left")
    for name in ("", "estimate", *(f"{coverage}%" for coverage in COVERAGES)):
        table.add_column(name, justify="right" if name else "left")
    for name, estimate in found.estimates.items():
        form = partial(_number, found) if name.startswith("labels") else "{:.4f}".format
        intervals = (
            f"[{form(estimate[f'low{coverage}'])}, {form(estimate[f'high{coverage}'])}]"
            for coverage in COVERAGES
        )
        row = [_FORECAST_NAMES.get(name, name), form(estimate["median"]), *intervals]
        table.add_row(*map(cell, row))
    return table


_FORECAST_NAMES = {
    "real_share": "share of the members' claims that is real",
    "loss": "log-loss now",
    "next_loss": "log-loss after the next batch",
    "gain": "gain of the next batch, expected",
    "left": "gain of all further labels together",
}


def _number(found: Forecast, more: float) -> str:
    """Returns a number of further labels, or that it lies beyond what is forecast."""
    if np.isfinite(more):
        return f"{more:,.0f}"
    return f"not within {HORIZON * found.labels:,}"


def _start(text: Text) -> str:
    """Returns the first 60 characters of a text on one line."""
    return " ".join(" ".join(content for _, content in turns(text)).split())[:60]
