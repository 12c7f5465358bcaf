"""The arrows between packages, and what no library module may do.

The arrows keep every formula testable by enumeration: losses, choices and exploration see arrays
only, never a model.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "shatter").rglob("*.py"))

# part of shatter -> the other parts that it may import; the arrays' own parts serve everybody.
EVERYBODY = {"types", "numerics", "factored"}
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "numerics": set(),
    "factored": set(),
    "choice": set(),
    "models": set(),
    "documents": {"models"},
    "losses": {"choice"},
    "ensembles": {"models"},
    "exploration": {"choice"},
    "search": {"models", "documents", "inference"},
    "environments": {"models", "documents"},
    "training": set(),
    "data": set(),
    "inference": {"models", "documents"},
    "evaluation": {"documents", "choice"},
}
COMMAND = "cli"  # may import every part; no part may import it
LIBRARY = [path for path in MODULES if path.relative_to(ROOT / "shatter").parts[0] != COMMAND]
# Slow or heavy to import, so imported where they are used.
LAZY = [
    *("tensorflow_probability", "distrax", "rlax", "mctx", "matplotlib", "orbax", "scipy.stats"),
    *("gguf", "grain", "jinja2", "pyarrow", "safetensors", "tokenizers", "huggingface_hub"),
]

every_module = pytest.mark.parametrize(
    "path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def part_of(path: Path) -> str:
    """`shatter/choice/luce.py` -> "choice", `shatter/types.py` -> "types"; "" for the root."""
    part = path.relative_to(ROOT / "shatter").with_suffix("").parts[0]
    return "" if part == "__init__" else part


def imports(path: Path) -> set[str]:
    """The dotted name of everything a file imports, also inside functions."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("shatter.")}


def dotted(node: ast.AST) -> str:
    """`jax.jit` for the expression jax.jit; "" for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def names_used(path: Path) -> set[str]:
    return {dotted(node) for node in ast.walk(ast.parse(path.read_text()))} | imports(path)


def test_there_is_something_to_check():
    assert MODULES


@every_module
def test_imports_point_one_way(path: Path):
    part = part_of(path)
    if part == "":
        return  # the root package may show every part
    assert part in ARROWS, f"{path}: give this part of shatter its arrows in ARROWS"
    wrong = parts_imported(path) - ARROWS[part] - EVERYBODY - {part}
    assert not wrong, f"{part} must not import {sorted(wrong)}"


def test_what_serves_everybody_imports_no_other_part():
    for path in MODULES:
        if part_of(path) in EVERYBODY:
            assert parts_imported(path) <= EVERYBODY


@pytest.mark.parametrize("part", ["losses", "choice", "exploration"])
def test_formulas_never_reach_a_model(part: str):
    """Not through other parts either."""
    seen: set[str] = set()
    front = {part}
    while front:
        seen |= front
        files = [path for path in MODULES if part_of(path) in front]
        front = set().union(*map(parts_imported, files)) - seen
    assert "models" not in seen


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_installed_imports_an_experiment(path: Path):
    assert not {name for name in imports(path) if name.split(".")[0] == "experiments"}


@every_module
def test_library_never_jits(path: Path):
    """The user composes first and compiles once, at the outermost place."""
    assert not names_used(path) & {"jax.jit", "jax.pjit"}


@every_module
def test_library_never_prints(path: Path):
    assert not names_used(path) & {"print", "jax.debug.print", "sys.stdout", "sys.stderr"}


@every_module
def test_library_reads_no_flags(path: Path):
    flag_readers = {"absl.flags", "absl.app", "argparse", "sys.argv", "tyro"}
    assert not names_used(path) & flag_readers


@every_module
def test_library_never_seeds(path: Path):
    """Randomness comes in as a typed key; in host code as a numpy Generator."""
    assert not imports(path) & {"random", "numpy.random"}
    sources = re.compile(r"jax\.random\.PRNGKey|(np|numpy)\.random\.(?!Generator$)")
    assert not {name for name in names_used(path) if sources.match(name)}


def test_import_is_light():
    """A fresh interpreter imports every part without the heavy libraries."""
    parts = sorted({part for path in LIBRARY if (part := part_of(path))})
    statements = [
        f"import sys, shatter, {', '.join(f'shatter.{part}' for part in parts)}",
        f"print([name for name in {LAZY} if name in sys.modules])",
    ]
    answer = subprocess.run(
        [sys.executable, "-c", "\n".join(statements)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"
