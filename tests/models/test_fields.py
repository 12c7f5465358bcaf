import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.models.fields import FLAG, SIZE, Field, check_fields, shown

NUMBER = Field("number", 0.5, 2.0)
IDS = Field("ids")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (SIZE, 1),
        (SIZE, 2**31 - 1),
        (SIZE, np.int32(7)),
        (SIZE._replace(optional=True), None),
        (NUMBER, 1),
        (NUMBER, 0.5),
        (NUMBER, np.float32(2.0)),
        (Field("number"), -1e300),
        (FLAG, False),
        (Field("text"), ""),
        (Field("texts"), []),
        (Field("texts"), ["a", "b"]),
        (Field("object"), {}),
        (IDS, -1),
        (IDS, [3, 4]),
        (IDS, (3,)),
    ],
)
def test_fits(field: Field, value: Any):
    check_fields({"it": value}, {"it": field})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (SIZE, 0, "an integer from 1 to 2147483647"),
        (SIZE, 2**31, "an integer from 1 to 2147483647"),
        (SIZE, 10**400, "an integer"),
        (SIZE, 3.0, "an integer"),
        (SIZE, True, "an integer"),
        (SIZE, "3", "an integer"),
        (SIZE, None, "an integer"),
        (NUMBER, 0.49, "a number from 0.5 to 2"),
        (NUMBER, math.nan, "a number from 0.5 to 2"),
        (NUMBER, np.float32("nan"), "a number from 0.5 to 2"),
        (NUMBER, True, "a number"),
        (Field("number"), math.inf, "a number"),
        (Field("number"), -math.inf, "a number"),
        (Field("number"), math.nan, "a number"),
        (Field("number", 0.0), -1, "a number from 0 on"),
        (FLAG, 1, "true or false"),
        (FLAG, [], "true or false"),
        (FLAG._replace(optional=True), "no", "true or false or null"),
        (Field("text"), [], "a text"),
        (Field("texts"), "ab", "a list of texts"),
        (Field("texts"), ["a", None], "a list of texts"),
        (Field("object"), [], "an object of names and values"),
        (IDS, "a", "a token id or a list of them"),
        (IDS, [1, "a"], "a token id or a list of them"),
        (IDS, [[1]], "a token id or a list of them"),
        (IDS, [True], "a token id or a list of them"),
        (IDS, 1.5, "a token id or a list of them"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_does_not_fit(field: Field, value: Any, expected: str):
    with pytest.raises(ValueError, match=f"it must be {expected}.*, found "):
        check_fields({"fine": 1, "it": value}, {"fine": SIZE, "absent": SIZE, "it": field})


def test_long_values_are_shown_short():
    assert shown("a") == "'a'"
    assert len(shown(list(range(10**5)))) == 80


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.floats() | st.integers() | st.booleans(), st.floats(-10, 10), st.floats(0, 10))
def test_a_number_in_range(value: Any, low: float, width: float):
    """Numbers of any type are accepted if, and only if, they are between the bounds."""
    field = Field("number", low, low + width)
    fits = not isinstance(value, bool) and low <= value <= low + width
    if fits:
        check_fields({"it": value}, {"it": field})
    else:
        with pytest.raises(ValueError, match="it must be a number from"):
            check_fields({"it": value}, {"it": field})
