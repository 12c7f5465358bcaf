"""Reads population shares from JSON lines: the part of a population that gives each answer.

One JSON object a line:

    {"prompt": "Which do you prefer?", "completions": ["tea", "coffee"], "shares": [0.4, 0.6],
     "n": 250, "group": {"attribute": "age", "value": "18-34"}}

`question`, `options` and `distribution` are accepted for `prompt`, `completions` and `shares`.
Where `group` is null, absent, or of attribute "all", the shares are everybody's. `id` (the prompt's
identity, by default its text) and `n_eff` (the effective number of people under survey weights) are
optional; other fields are ignored.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.sources import SourceError

SUM_TOLERANCE = 1e-3  # published shares are rounded

_TEXT, _TEXTS, _NUMBERS = (
    "a non-empty string",
    "a list of 2 or more distinct strings",
    "a list of numbers",
)


class Group(NamedTuple):
    """A part of the population, such as attribute "party", value "Independent"."""

    attribute: str
    value: str


class Shares(NamedTuple):
    """The shares of one prompt's completions in one group.

    Attributes:
      id: The prompt's identity; equal in all groups of one prompt.
      prompt: The prompt's text.
      completions: [K] texts.
      shares: [K] non-negative, summing to exactly 1.
      n: The number of people asked.
      n_eff: Their effective number under survey weights; n if the file gives none.
      group: The group, or None for everybody.
    """

    id: str
    prompt: str
    completions: tuple[str, ...]
    shares: npt.NDArray[np.float64]
    n: int
    n_eff: float
    group: Group | None


class _Line(NamedTuple):
    """One object of the file, with its place for error messages."""

    path: Path
    number: int
    fields: dict[str, Any]

    def error(self, field: str, expected: str, found: object, mend: str) -> SourceError:
        return SourceError.at(
            self.path, self.number, field, expected=expected, found=found, mend=mend
        )

    def pick(self, *names: str) -> tuple[str, Any]:
        """Returns the alternative name under which the line has a field, and the field's value."""
        present = [name for name in names if name in self.fields]
        if len(present) != 1:
            expected = "exactly one of " + ", ".join(names) if len(names) > 1 else "this field"
            names_found = present or "no such field"
            raise self.error(names[0], expected, names_found, "Name each field once on every line.")
        return present[0], self.fields[present[0]]


def load_shares(path: str | Path) -> tuple[Shares, ...]:
    """Reads every line of a JSON-lines file of population shares.

    Args:
      path: A UTF-8 file of the format above; blank lines are skipped.

    Returns:
      One `Shares` a line, in the file's order.

    Raises:
      SourceError: if the file is missing or empty; or if a line is not JSON, lacks a field, has a
        field of a wrong type or value, repeats an earlier (id, group), or gives a known id another
        text or other completions. The message names the file, the line and the field, what was
        expected, what was found, and how to correct it.
    """
    path = Path(path)
    records: list[Shares] = []
    texts: dict[str, tuple[str, tuple[str, ...]]] = {}
    lines_of: dict[tuple[str, Group | None], int] = {}
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        line = _parse_object(path, number, text)
        record = _parse_shares(line)
        if texts.setdefault(record.id, (record.prompt, record.completions)) != (
            record.prompt,
            record.completions,
        ):
            raise line.error(
                "id", "the same prompt and completions for one id", record.id, "Give it another id."
            )
        first = lines_of.setdefault((record.id, record.group), number)
        if first != number:
            raise line.error(
                "group",
                "one line for an id and group",
                record.group,
                f"Line {first} has it already.",
            )
        records.append(record)
    if not records:
        raise SourceError(f"{path}, line 1: expected one JSON object a line, found an empty file.")
    return tuple(records)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise SourceError(
            f"{path}: the file cannot be read ({error.strerror}). Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: expected UTF-8 text, found {error}. Save it as UTF-8."
        ) from error


def _parse_object(path: Path, number: int, text: str) -> _Line:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{path}, line {number}, column {error.colno}: expected one JSON object, found "
            f"{text[:60]!r} ({error.msg}). Write one complete object on each line."
        ) from error
    if not isinstance(value, dict):
        raise SourceError(
            f"{path}, line {number}: expected a JSON object {{...}}, found {text[:60]!r}. "
            "Write one complete object on each line."
        )
    return _Line(path, number, value)


def _parse_shares(line: _Line) -> Shares:
    prompt = _text(line, *line.pick("prompt", "question"))
    completions = _completions(line)
    n = line.pick("n")[1]
    if not isinstance(n, int) or isinstance(n, bool) or n <= 0:
        raise line.error("n", "a whole number of people above 0", n, "Give the number asked.")
    n_eff = line.fields.get("n_eff", n)
    if not _is_number(n_eff) or n_eff <= 0:
        raise line.error("n_eff", "a number above 0", n_eff, "Correct it or leave it out.")
    return Shares(
        id=_text(line, "id", line.fields.get("id", prompt)),
        prompt=prompt,
        completions=completions,
        shares=_distribution(line, len(completions)),
        n=n,
        n_eff=float(n_eff),
        group=_group(line),
    )


def _text(line: _Line, field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise line.error(field, _TEXT, value, "Write the text in double quotes.")
    return value


def _completions(line: _Line) -> tuple[str, ...]:
    field, values = line.pick("completions", "options")
    if not isinstance(values, list) or len(values) < 2:
        raise line.error(field, _TEXTS, values, "A choice needs at least two completions.")
    texts = tuple(_text(line, field, value) for value in values)
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise line.error(
            field, _TEXTS, repeated, "Merge the repeated completions and add up their shares."
        )
    return texts


def _distribution(line: _Line, num_completions: int) -> npt.NDArray[np.float64]:
    field, values = line.pick("shares", "distribution")
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise line.error(field, _NUMBERS, values, "Write finite numbers, not text, null or NaN.")
    if len(values) != num_completions:
        raise line.error(
            field,
            f"{num_completions} numbers, one a completion",
            f"{len(values)} numbers",
            "Give every completion its share, 0 where nobody chose it.",
        )
    if min(values) < 0:
        raise line.error(field, "no negative number", min(values), "A share lies between 0 and 1.")
    total = math.fsum(values)
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise line.error(
            field,
            f"a sum of 1 within {SUM_TOLERANCE}",
            total,
            "Divide by the sum (counts and percentages are not shares).",
        )
    return np.asarray(values, np.float64) / total


def _group(line: _Line) -> Group | None:
    value = line.fields.get("group")
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"attribute", "value"}:
        raise line.error(
            "group",
            'null or {"attribute": ..., "value": ...}',
            value,
            "Leave the field out for everybody.",
        )
    group = Group(
        _text(line, "group.attribute", value["attribute"]),
        _text(line, "group.value", value["value"]),
    )
    return None if group.attribute == "all" else group


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
