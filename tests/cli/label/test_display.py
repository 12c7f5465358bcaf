"""Texts of pools and people are shown literally; no terminal or library interprets them."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from shatter.cli.common.binary import UsageError
from shatter.cli.label import run, tables
from shatter.cli.label.config import ExportConfig, ImportConfig, LearnConfig
from shatter.cli.label.display import cell, say, turns, visible
from shatter.cli.label.inputs import OF_POOL
from shatter.cli.label.queries import TextQuery
from tests.cli.label.projects import VOTES, answer_all, write

ODD = ("[/INST] a", "[bold]b[/bold]", "\x1b[31mred\x1b[0m", "[link=x]c", "d\x9b2J\u202ee", "[/]")
OBEYED = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def printed(show):
    file = io.StringIO()
    show(Console(file=file, width=300, highlight=False, force_terminal=False))
    return file.getvalue()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(st.characters(), max_size=30) | st.sampled_from(ODD))
def test_any_text_is_printed_and_none_obeyed(text):
    said = printed(lambda console: say(console, text))
    assert not re.search(OBEYED, said)
    assert said == visible(text) + "\n"
    query = TextQuery(text or "q", text, (text or "a", "b"), arm=text, round=text)
    table = printed(lambda console: console.print(tables.queries([query])))
    assert not re.search(OBEYED, table)
    row = {f"{text}/log_loss": 0.5, "answers": 3, "answers_sha256": "x"}
    table = printed(lambda console: console.print(tables.metrics(Path("p") / "x", [row, row])))
    if text != OF_POOL:  # no held-out file has this name
        assert cell(f"{text}/log_loss").plain in table
    assert not re.search(OBEYED, table)


def test_what_was_on_the_terminal_stays_in_one_piece():
    command = "shatter label answer --project=" + "x" * 400
    assert printed(lambda console: say(console, command)) == command + "\n"


def test_calls_of_tools_are_shown():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    said = (
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2.", "tool_calls": calls},
    )
    assert turns(said) == [
        ("assistant", json.dumps(calls)),
        ("tool", "2"),
        ("assistant", f"It is 2.\n{json.dumps(calls)}"),
    ]


@pytest.mark.slow
def test_a_pool_and_files_with_markup_go_through_every_command(config, tmp_path, capsys):
    pool = [{"prompt": f"a {text}", "completions": [text, f"b{text}", "c"]} for text in ODD]
    held = write(tmp_path / "[bold]$x$ _{[-INST].jsonl", VOTES[:4])
    below = tmp_path / "[red]project[-blue]"
    config = dataclasses.replace(
        config, pool=write(tmp_path / "pool.jsonl", pool), eval_files=(held,), project=str(below)
    )
    rows = [{"prompt": text, "chosen": "a", "rejected": text} for text in ODD]
    rows += [{"prompt": text, "chosen": "a"} for text in ODD]
    for one in (
        config,
        ImportConfig(
            project=str(below), file=write(tmp_path / "rows.jsonl", rows), on_bad_row="skip"
        ),
        LearnConfig(project=str(below)),
        ExportConfig(project=str(below), answers=str(tmp_path / "[b]export.jsonl")),
    ):
        run.experiment(one)
        if one is config:
            answer_all(config)
    said = capsys.readouterr().out
    for text in (
        "[/INST]",
        "[bold]",
        "[red]project[-blue]",
        "[bold]$x$ _{[-INST]/log_loss",
    ):
        assert text in said
    assert not re.search(OBEYED, said)
    assert (below / "label.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_error_obeys_nothing(config, tmp_path):
    """The message shows the control characters in a field's name as letters."""
    row = {"\x1b[2Jfield [/INST]": 1, "completions": ["a", "b"]}
    pool = write(tmp_path / "pool.jsonl", [row])
    command = [sys.executable, "-m", "shatter.cli", "label", "propose", f"--pool={pool}"]
    command += [f"--project={tmp_path / 'p'}", f"--model_name_or_path={config.model_name_or_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert r"\x1b[2Jfield [/INST]" in done.stderr and "\x1b" not in done.stderr


DEEP = "[" * 400 + "]" * 400


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "p", "completions": 5}',
        '{"prompt": "p", "completions": "ab"}',
        '{"prompt": "p", "completions": {"a": "b"}}',
        '{"prompt": "p", "completions": []}',
        '{"prompt": "p", "completions": ["\\ud800", "b"]}',
        '{"prompt": "\\udfff"}',
        '{"prompt": 7, "id": 1}',
        '{"id": 1}',
        '{"prompt": ' + DEEP + "}",
        '{"prompt": "p", "completions": ["a", ' + DEEP + "]}",
        '{"prompt": "p", "x": ' + "[" * 100_000 + "}",
        '{"prompt": "p", "x": ' + '{"a":' * 100_000 + "}",
    ],
)
def test_a_line_of_a_pool_that_is_none(config, line):
    Path(config.pool).write_text('{"prompt": "p", "completions": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"pool.jsonl(:2)?: "):
        run.experiment(config)


def test_prompts_with_other_fields_are_prompts(config, tmp_path):
    from shatter.cli.label.pool import read_pool

    rows = [
        {
            "prompt": "ab",
            "id": 3,
            "metadata": {"of": ["me"]},
            "chosen_by": "x",
            "completions": None,
        },
        {"prompt": "c", "source": "[/INST]", "weight": 1.0, "annotator": "Ann"},
    ]
    found = read_pool(write(tmp_path / "prompts.jsonl", rows))
    assert found == (["ab", "c"], [])
