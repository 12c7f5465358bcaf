"""Hypothesis strategies that several tests share: rows, settings, flags, log-probs.

They are bounded, so that a campaign costs seconds, and by the profile below every run of the tests
draws the same examples. `SHATTER_CAMPAIGN_SIZE=10` draws ten times as many.
"""

import copy
import dataclasses
import json
import os
import types
import typing
from typing import Any, Literal

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SIZE = int(os.environ.get("SHATTER_CAMPAIGN_SIZE", "1"))
"""How many times the default number of examples a campaign draws."""

settings.register_profile(
    "shatter",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60 * SIZE,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("shatter")

LONG = "x" * 5000
HALF = "half \ud83d emoji"  # UTF-8 cannot hold it

# --- values that do not belong --------------------------------------------------------------------

INTEGERS = (0, -1, -(2**31), 2**31 - 1, 2**31, 2**63, 10**30)
FLOATS = (0.0, -1.0, 1e-320, 1e30, 1e308, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", " ", "\0", "\x1b[31m", "no such thing", "\udcff", LONG, "../..", "/", "~", "-", "a\nb")
JSON = (
    *(None, True, False),
    *INTEGERS,
    *(10**400, 0.5, -0.5),
    *FLOATS,
    *("", " ", "1", "true", HALF, LONG, "\0", "[bold]x[/]"),
    *([], [None], [[]], [1, "a"], list(range(1000))),
    *({}, {"a": {"b": [{}]}}, {"": None}),
)
"""What may stand in a JSON file in place of a value, some of it beyond the standard."""


def absurd_values(kind: Any) -> tuple[Any, ...]:
    """Values of a flag's type that no user could mean, or hardly any.

    Args:
      kind: the annotation of a field of a config.

    Returns:
      The values; none for a choice or a switch, of which the command line admits the right ones.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return tuple(value for one in inner for value in absurd_values(one))
    if origin is tuple:
        return ((), *((value,) for value in absurd_values(inner[0])), ("a", "a"))
    if origin is Literal or kind in (bool, type(None)):
        return ()
    return {int: INTEGERS, float: FLOATS, str: TEXTS}[kind]


def absurd_flags(config: Any) -> list[tuple[str, Any]]:
    """Every field of a config with every absurd value of its type.

    Args:
      config: an instance of a frozen dataclass.

    Returns:
      Pairs of a name and a value.
    """
    kinds = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    return [(name, value) for name in names for value in absurd_values(kinds[name])]


def absurd_settings(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every field of a JSON object with every absurd value, and `...` for its absence.

    Args:
      found: the object.

    Returns:
      Pairs of a name and a value.
    """
    return [(name, value) for name in found for value in (*JSON, ...)]


# --- rows -----------------------------------------------------------------------------------------

ALPHABET = st.characters(codec="utf-8")
WORDS = st.sampled_from(("a", "ab c", "bad", "d\u0301", "\U0001f600 ab", "\u202eab", "[b]a[/b]"))
TEXT = WORDS | st.text(ALPHABET, min_size=1, max_size=8).filter(str.strip)
NAMES = st.none() | st.sampled_from(("ann", "b\u00f6b", 7))


def _message(role: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": TEXT})


def _texts(num: int) -> st.SearchStrategy[list[str]]:
    return st.lists(TEXT, min_size=num, max_size=num, unique=True)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A good row of any layout, as its JSON object."""
    num = draw(st.integers(2, 4))
    completions: list[Any] = draw(_texts(num))
    prompt: Any = draw(TEXT)
    if draw(st.booleans()):
        completions = [[{"role": "assistant", "content": text}] for text in completions]
        prompt = [*draw(st.lists(_message("system"), max_size=1)), draw(_message("user"))]
    layout = draw(
        st.sampled_from(("pair", "implicit", "label", "shown", "ranks", "rates", "votes"))
    )
    row: dict[str, Any] = {"prompt": prompt}
    if layout in ("pair", "implicit"):
        row |= {"chosen": completions[0], "rejected": completions[1]}
        if layout == "implicit":
            space = " " if isinstance(prompt, str) else []
            row = {k: prompt + space + row[k] for k in ("chosen", "rejected")}
    elif layout in ("label", "shown"):
        row |= {"completion": completions[0]}
        row |= {"label": draw(st.booleans())} if layout == "label" else {}
    else:
        row |= {"completions": completions}
        if layout == "ranks":
            row["ranks"] = draw(st.lists(st.integers(1, 3), min_size=num, max_size=num))
        elif layout == "rates":
            row["ratings"] = draw(st.lists(st.integers(0, 9), min_size=num, max_size=num))
        else:
            row["votes"] = draw(st.lists(st.integers(1, 9), min_size=num, max_size=num + 1))
    for name, values in (("weight", st.sampled_from((1, 0.5, 3))), ("annotator", NAMES)):
        if draw(st.integers(0, 3)) == 0:
            row[name] = draw(values)
    return row


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value, itself left out."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        found += [(*at, key), *places(part, (*at, key))]
    return found


@st.composite
def mutated_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of which one to three parts are of a wrong type, absent, doubled or absurd."""
    row = copy.deepcopy(draw(rows()))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(row)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        parent: Any = row
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(("replace", "replace", "remove", "wrap", "add", "double"))):
            case "remove":
                del parent[last]
            case "wrap":
                parent[last] = [parent[last]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(("prompt", "label", "votes", "ranks", "id")))] = 1
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
            case _:
                parent[last] = copy.deepcopy(draw(st.sampled_from(JSON)))
    return row


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of a file: a good row, a mutated one, or one whose bytes are damaged."""
    kind = draw(st.sampled_from(("good", "mutated", "mutated", "mutated", "damaged")))
    row = draw(rows() if kind == "good" else mutated_rows())
    line = json.dumps(row, ensure_ascii=draw(st.booleans()) or HALF in f"{row}")
    raw = line.encode("utf-8", "surrogatepass")
    if kind == "damaged":
        at = draw(st.integers(0, len(raw) - 1))
        junk = draw(
            st.sampled_from((b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"[" * 9999, b'"', b"}"))
        )
        raw = raw[:at] + junk + raw[at + draw(st.integers(0, 9)) :]
    return raw.replace(b"\n", b" ").replace(b"\r", b" ")


# --- log-probs ------------------------------------------------------------------------------------

LOG_PROBS = (0.0, -0.0, -1e-7, -1.0, -3.0, -3.0, -88.0, -104.0, -1e3, -1e5, -3e38, -float("inf"))


def log_probs(*shape: int, lowest: float = -float("inf")) -> st.SearchStrategy[np.ndarray]:
    """Arrays of log-probs: certain, tied, far apart, impossible.

    Args:
      *shape: of the arrays.
      lowest: the least value.

    Returns:
      A strategy of float32 arrays; their values fit half precision only where they are small.
    """
    values = st.sampled_from([value for value in LOG_PROBS if value >= lowest])
    size = int(np.prod(shape))
    made = lambda some: np.asarray(some, np.float32).reshape(shape)
    return st.lists(values, min_size=size, max_size=size).map(made)
