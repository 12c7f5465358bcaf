"""Types and ranges of the fields of settings files, and their checks."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

_NAMES = {
    "integer": "an integer",
    "number": "a number",
    "flag": "true or false",
    "text": "a text",
    "texts": "a list of texts",
    "ids": "a token id or a list of them",
    "object": "an object of names and values",
}


class Field(NamedTuple):
    """The type and the range of a field.

    Attributes:
      kind: "integer" and "number" exclude true and false, "number" includes integers; "ids" is an
        integer or a list of integers.
      low: the smallest number.
      high: the largest number. NaN and infinities never fit.
      optional: whether null (None) is allowed.
    """

    kind: Literal["integer", "number", "flag", "text", "texts", "ids", "object"]
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False

    def __str__(self) -> str:
        """Returns what is expected, for messages."""
        text = _NAMES[self.kind]
        if self.high < math.inf:
            text += f" from {self.low:.12g} to {self.high:.12g}"
        elif self.low > -math.inf:
            text += f" from {self.low:.12g} on"
        return text + " or null" * self.optional


SIZE = Field("integer", 1, 2**31 - 1)
FLAG = Field("flag")


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Raises ValueError if a value has another type or is out of its range.

    Args:
      values: the values by name; a field may be absent.
      fields: the fields by name; other values are not checked.

    Raises:
      ValueError: with the name of the first wrong field, what was expected and what was found.
    """
    for name, field in fields.items():
        if name in values and not _fits(values[name], field):
            raise ValueError(f"{name} must be {field}, found {shown(values[name])}")


def check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raises ValueError if a value is not one of those that are known.

    Args:
      name: the name of the field.
      value: its value.
      known: the values that it may have.

    Raises:
      ValueError: with the name, the known values and what was found.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")


def shown(value: Any) -> str:
    """Returns the `repr` of a value, shortened to 80 characters, for messages.

    Args:
      value: any value.
    """
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fits(value: Any, field: Field) -> bool:
    if value is None:
        return field.optional
    if field.kind in ("texts", "ids") and isinstance(value, list | tuple):
        part = field._replace(kind="text" if field.kind == "texts" else "integer", optional=False)
        return all(_fits(each, part) for each in value)
    if field.kind in ("integer", "ids", "number"):
        kind = Real if field.kind == "number" else Integral
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        number: Any = value
        # Written so that NaN fails, and without converting integers that are too large for floats.
        return bool(field.low <= number <= field.high and -math.inf < number < math.inf)
    return isinstance(value, {"flag": bool, "text": str, "object": dict}.get(field.kind, ()))
