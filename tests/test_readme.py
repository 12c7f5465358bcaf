"""The README's commands have the agreed form, its example runs, its table is true."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = [line for line in README.splitlines() if line.startswith("|") and "`shatter." in line]
FUNCTIONS = sorted(set(re.findall(r"`(shatter(?:\.\w+)+)[`(]", README)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", README)))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_two_commands_of_one_line():
    """Each can be pasted whole: no prompt sign, no comment, no continuation."""
    commands = blocks("shell")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert not re.match(r"\s*[$#>%]", command)
        assert " #" not in command
        assert not command.rstrip().endswith("\\")


@pytest.mark.slow
def test_python_example_runs_as_it_stands(tmp_path: Path):
    """In an interpreter and a folder of its own, with warnings as errors."""
    # Two processes may meet at one entry of the compilation cache: see pyproject.toml.
    warnings = ["-W", "error", "-W", "ignore:Error :UserWarning:jax._src.compiler"]
    (example,) = blocks("python")
    code = [line for line in example.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(code) <= 15
    answer = subprocess.run(
        [sys.executable, *warnings, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr


def test_there_is_a_table():
    assert ROWS


@pytest.mark.parametrize("row", ROWS)
def test_row_names_a_test(row: str):
    assert re.search(r"`tests/[\w/]+\.py::\w+`", row)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_exists(function: str):
    pkgutil.resolve_name(function)  # raises where a part is missing


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_test_exists(path: str, name: str):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in defined
