"""The reference page is complete, and every public symbol is documented."""

import ast
import importlib
import inspect
import re

import pytest

from docs.make_reference import PAGE, PUBLIC, Symbol, public_names, reference, symbols
from shatter import exploration

every_module = pytest.mark.parametrize("name", PUBLIC)
every_symbol = pytest.mark.parametrize(
    "symbol",
    [
        pytest.param(symbol, id=f"{module}.{symbol.name}")
        for module in PUBLIC
        for symbol in symbols(module)
    ],
)


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python docs/make_reference.py"


@every_module
def test_all_is_importable(name: str):
    module = importlib.import_module(name)
    assert list(module.__all__) == public_names(name)
    missing = [symbol for symbol in module.__all__ if not hasattr(module, symbol)]
    assert not missing


@every_module
def test_all_leaves_nothing_out(name: str):
    """What a package defines, or imports from its own parts, without an underscore is public."""
    module = importlib.import_module(name)
    found = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and f"{getattr(value, '__module__', '')}.".startswith(f"{name}.")
    }
    assert found <= set(module.__all__)


PROTOCOLS = {
    protocol.__name__: protocol for protocol in (exploration.PairArm, exploration.QueryArm)
}
"""Signatures that are documented once; a function that refers to one documents what it adds."""


@every_symbol
def test_symbol_is_documented(symbol: Symbol):
    """Args names every parameter; Returns is there where something is returned."""
    node = symbol.definition
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return  # an alias shows what it is
    assert symbol.doc, "no docstring"
    if isinstance(node, ast.ClassDef):
        return
    arguments = node.args
    given = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    given += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    if protocol := re.search(r"those of\s+`((?:Pair|Query)Arm)`", symbol.doc):
        shared = inspect.signature(PROTOCOLS[protocol[1]].__call__).parameters
        assert {"key", "log_probs", "valid"} < set(shared) & {a.arg for a in given}
        given = [a for a in given if a.arg not in shared]
    if given:
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", symbol.doc, re.DOTALL | re.MULTILINE)
        assert section, "no Args section"
        missing = [a.arg for a in given if not re.search(rf"\b{a.arg}\b", section[1])]
        assert not missing, f"Args does not name {missing}"
    if not protocol and node.returns and ast.unparse(node.returns) != "None":
        assert re.search(r"^Returns:$", symbol.doc, re.MULTILINE), "no Returns section"
