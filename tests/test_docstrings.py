"""The examples in the docstrings of public functions run as they stand."""

import doctest
import importlib
import inspect
import io
import pkgutil
from pathlib import Path

import pytest

import shatter

# What a user calls first has an example.
WITH_EXAMPLE = [
    "documents.sample",
    "ensembles.adapters",
    "ensembles.anchored",
    "exploration.infomax",
    "losses.ilhf_loss",
    "models.load_pretrained",
    "training.interaction",
]


def find_examples() -> dict[str, doctest.DocTest]:
    """The examples of every public function and class, by its first public name.

    Names that a package imports on first use are left out: they need optional libraries.
    """
    finder = doctest.DocTestFinder(recurse=False)
    examples: dict[str, doctest.DocTest] = {}
    seen: set[int] = set()
    for part in sorted(info.name for info in pkgutil.iter_modules(shatter.__path__)):
        if part == "cli":
            continue
        module = importlib.import_module(f"shatter.{part}")
        for name in module.__all__:
            value = vars(module).get(name)
            if id(value) in seen or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            seen.add(id(value))
            for found in finder.find(value, f"{part}.{name}", module=False, globs={}):
                if found.examples:
                    examples[f"{part}.{name}"] = found
    return examples


EXAMPLES = find_examples()


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_there_is_an_example(name: str):
    assert name in EXAMPLES


SLOW = (  # they compile most
    "documents.sample",
    "ensembles.adapters",
    "ensembles.anchored",
    "exploration.infomax",
    "exploration.joint_infomax_queries",
    "models.load_pretrained",
    "training.interaction",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXAMPLES],
)
def test_example_runs_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, and with nothing but its own imports."""
    monkeypatch.chdir(tmp_path)
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(EXAMPLES[name], out=report.write).failed == 0, report.getvalue()
