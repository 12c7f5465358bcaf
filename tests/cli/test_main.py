"""The command `shatter` as a user types it: help, unknown commands, missing packages, old names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shatter.cli import main

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
    head = ["-m", "shatter.cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *head, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd="/",
    )


def test_help_lists_every_command_and_imports_none_of_them():
    code = (
        "import sys; from shatter.cli import main; main.main(); "
        "assert not {'tyro', 'orbax', 'matplotlib'} & set(sys.modules)"
    )
    answer = call("--help", code=code)
    assert answer.returncode == 0, answer.stderr
    for name in main.COMMANDS:
        assert f"  {name} " in answer.stdout


def test_no_argument_shows_the_help(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["shatter"])
    main.main()
    assert "usage: shatter COMMAND" in capsys.readouterr().out


def test_an_unknown_command_shows_the_known_ones(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["shatter", "train"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "unknown command 'train'" in message
    assert "finetune" in message


@pytest.mark.slow
def test_every_command_explains_its_flags_under_its_own_name():
    for name in main.COMMANDS:
        answer = call(name, "--help")
        assert answer.returncode == 0, answer.stderr
        assert f"shatter {name}" in answer.stdout


def test_a_missing_package_names_the_extra():
    code = (
        "import sys; sys.modules['tyro'] = None; sys.argv = ['shatter', 'finetune']; "
        "from shatter.cli import main; main.main()"
    )
    answer = call(code=code)
    assert answer.returncode == 1
    assert "pip install 'shatter-lm[cli]'" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["generate", "--model_name_or_path=model"], "prompts"),
        pytest.param(
            ["convert", "--model_name_or_path=model"], "output_dir", marks=pytest.mark.slow
        ),
    ],
)
def test_a_required_flag_that_is_missing_shows_a_complete_command(arguments: list[str], flag: str):
    """Those of finetune and label are tested with the other flags of these commands."""
    answer = call(*arguments)
    assert answer.returncode == 1
    assert f"--{flag} is required; for example: shatter {arguments[0]}" in answer.stderr
