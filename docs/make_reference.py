"""Writes docs/reference.md: every public symbol with its signature and summary.

    python docs/make_reference.py

Everything is read from the source text, not from imported objects: annotations and defaults then
print as they were written, alike under every version of Python and jax, and names that a package
imports lazily need not be imported.
"""

import ast
import importlib.util
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
PUBLIC = [
    "shatter.types",
    "shatter.numerics",
    "shatter.factored",
    "shatter.choice",
    "shatter.models",
    "shatter.documents",
    "shatter.losses",
    "shatter.ensembles",
    "shatter.exploration",
    "shatter.training",
    "shatter.evaluation",
    "shatter.inference",
    "shatter.search",
    "shatter.environments",
    "shatter.data",
]
WIDTH = 88  # longer signatures get one parameter a line

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Symbol(NamedTuple):
    """A public name and where the source defines it."""

    name: str
    definition: Definition
    doc: str
    path: Path


def source(module: str) -> Path:
    """The file of a dotted module name."""
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def parse(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(source(module).read_text(encoding="utf-8"))


def summary(doc: str | None) -> str:
    """The first paragraph of a docstring on one line; "" where there is none."""
    return " ".join((doc or "").strip().split("\n\n")[0].split())


def public_names(module: str) -> list[str]:
    """The names in a module's `__all__`, in its order.

    Raises:
      LookupError: if the module has no `__all__`.
    """
    for node in parse(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise LookupError(f"{module} is public, so it needs an __all__")


def find(module: str, name: str) -> Symbol:
    """Follows re-exports to the definition of a name.

    Raises:
      LookupError: if neither a definition nor an import of the name is in the module.
    """
    tree = parse(module)
    for i, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Symbol(name, node, ast.get_docstring(node) or "", source(module))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                return Symbol(name, node, _string(tree.body[i + 1 : i + 2]), source(module))
    package = module if source(module).name == "__init__.py" else module.rpartition(".")[0]
    # ast.walk also sees the imports inside a package's __getattr__.
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                if (alias.asname or alias.name) == name and source(origin).exists():
                    return find(origin, alias.name)._replace(name=name)
    raise LookupError(f"{module}.{name} is in __all__ but neither defined nor imported there")


def _string(body: list[ast.stmt]) -> str:
    """The text of a string that stands under an assignment, as its docstring."""
    match body:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text
    return ""


def symbols(module: str) -> list[Symbol]:
    """The public symbols of a module."""
    return [find(module, name) for name in public_names(module)]


def parameters(arguments: ast.arguments) -> list[str]:
    """The parameters of a function as they are written, with `/` and `*` where they belong."""

    def show(argument: ast.arg, default: ast.expr | None = None, prefix: str = "") -> str:
        text = prefix + argument.arg
        if argument.annotation:
            text += f": {ast.unparse(argument.annotation)}"
        if default:
            text += " = " if argument.annotation else "="
            text += ast.unparse(default)
        return text

    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    shown = [show(*pair) for pair in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        shown.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        shown.append(show(arguments.vararg, prefix="*"))
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += map(show, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        shown.append(show(arguments.kwarg, prefix="**"))
    return shown


def signature(symbol: Symbol) -> str:
    """How a symbol is called: parameters of a function, fields or `__init__` of a class."""
    node = symbol.definition
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return f"{symbol.name} = {ast.unparse(node.value) if node.value else '...'}"
    end = ""
    if isinstance(node, ast.FunctionDef):
        shown = parameters(node.args)
        end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    else:
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
        shown = parameters(inits[0].args)[1:] if inits else fields
    line = f"{symbol.name}({', '.join(shown)}){end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{symbol.name}(", *(f"    {text}," for text in shown), f"){end}"])


def reference() -> str:
    """The whole page."""
    lines = [
        "# API reference",
        "",
        "Written by `python docs/make_reference.py` from the source; do not edit. The docstrings,",
        "behind the links, give formulas, sources, shapes and units.",
    ]
    for module in PUBLIC:
        lines += ["", f"## {module}", "", summary(ast.get_docstring(parse(module)))]
        for symbol in symbols(module):
            link = f"../{symbol.path.relative_to(ROOT).as_posix()}"
            lines += ["", f"### [{symbol.name}]({link})", ""]
            lines += ["```python", signature(symbol), "```"]
            if symbol.doc:
                lines += ["", summary(symbol.doc)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
