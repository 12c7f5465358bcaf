"""Square brackets in printed names are text and not markup."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from shatter.cli.common.progress import open_console, progress_bar


def test_brackets_are_text_in_lines_and_tables(capsys: pytest.CaptureFixture):
    console, table = open_console(), Table(title="a [bold] title")
    table.add_column("[red]name")
    table.add_row("[b]held.jsonl")
    console.print("runs/[/INST]")
    console.print(table)
    out = capsys.readouterr().out
    assert "runs/[/INST]" in out and "[red]name" in out and "[b]held.jsonl" in out


def test_brackets_are_text_in_the_progress_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_bar(console, 2) as advance:
        advance("reading [/INST].jsonl", 1)
    assert "[/INST].jsonl" in console.file.getvalue()  # type: ignore[attr-defined]
