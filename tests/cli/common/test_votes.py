"""Measures of utilities by votes equal sums by hand."""

import math

import numpy as np
import pytest

from shatter.cli.common.votes import score, score_rankings
from shatter.data import Row

MEASURES = {"log_loss", "accuracy", "calibration_error", "share_kl"}


def voted(a: str, b: str, *votes: float) -> list[Row]:
    """Returns a row for each answer that somebody gave: first, second, equal."""
    ranks = ((1, 2), (2, 1), (1, 1))
    return [
        Row("", (a, b), order, float(count), votes=votes)
        for order, count in zip(ranks, votes, strict=False)
        if count
    ]


def by_text(table: dict[str, float], rows: list[Row]) -> np.ndarray:
    return np.array([[table[str(text)] for text in row.completions] for row in rows])


def test_scores_by_hand():
    # P(a before b) = 3/4 with votes 3 : 1, P(a before c) = 1/2 with 0 : 2, P(b before c) = 1/4 with
    # 1 : 1, which has no majority.
    rows = voted("a", "b", 3, 1, 5) + voted("a", "c", 0, 2) + voted("b", "c", 1, 1, 7)
    utilities = by_text({"a": math.log(3), "b": 0, "c": math.log(3)}, rows)
    got = score(rows, utilities)
    assert got.keys() == MEASURES
    losses = -3 * math.log(3 / 4) - math.log(1 / 4) + 2 * math.log(2)
    losses += -math.log(1 / 4) - math.log(3 / 4)
    assert got["log_loss"] == pytest.approx(losses / 8)
    assert got["accuracy"] == (1 + 0.5) / 2
    assert got["calibration_error"] == pytest.approx((0 + 2 * 0.5 + (1 - 2 * 0.25)) / 8)
    noise = -3 * math.log(3 / 4) - math.log(1 / 4) + 2 * math.log(2)
    assert got["share_kl"] == pytest.approx((losses - noise) / 8)


def test_measures_of_nothing_are_absent():
    """They are neither 0 nor NaN, and the other measures are there."""
    ties = voted("a", "b", 0, 0, 2) + voted("c", "b", 0, 0, 1)
    assert score(ties, np.zeros((2, 2))) == {}
    assert score([Row("", ("a", "b"), (1, 2), 0.0)], np.zeros((1, 2))) == {}
    assert score([], np.zeros((0, 2))) == {}
    even = [Row("", ("a", "b"), (1, 2), 1.0), Row("", ("b", "a"), (1, 2), 1.0)]
    found = score(even, np.zeros((2, 2)))
    assert found == pytest.approx({"log_loss": math.log(2), "calibration_error": 0.0})
    decided = voted("a", "b", 2, 0) + voted("a", "c", 0, 0, 3)
    assert score(decided, np.zeros((len(decided), 2)))["accuracy"] == 0.5


def test_the_calibration_error_is_within_bins():
    # .74 with 0 of 4 and .66 with 4 of 4: right on average, though the bins differ
    rows = voted("a", "z", 0, 4) + voted("b", "z", 4, 0)
    table = {"a": math.log(0.75 / 0.25), "b": math.log(0.65 / 0.35), "z": 0.0}
    got = score(rows, by_text(table, rows))["calibration_error"]
    assert got == pytest.approx((4 * 0.75 + 4 * 0.35) / 8)
    rows = voted("a", "z", 3, 1) + voted("b", "z", 3, 1)
    table = {"a": math.log(0.78 / 0.22), "b": math.log(0.72 / 0.28), "z": 0.0}
    assert score(rows, by_text(table, rows))["calibration_error"] == pytest.approx(0)


def test_rows_of_one_pair_are_one_pair_in_any_order():
    apart = voted("a", "b", 3, 1, 2) + voted("b", "c", 1, 2)
    together = [
        Row("", ("a", "b"), (2, 1), 1.0),
        Row("", ("c", "b"), (1, 2), 2.0),
        Row("", ("b", "a"), (2, 1), 3.0),
        Row("", ("c", "b"), (2, 1), 1.0),
        Row("", ("a", "b"), (4, 4), 2.0),
    ]
    table = {"a": 0.9, "b": 0.1, "c": 0.5}
    one, two = (score(rows, by_text(table, rows)) for rows in (apart, together))
    assert "share_kl" not in two  # no vote counts
    assert two == pytest.approx({name: one[name] for name in two})
    assert two["accuracy"] == 1


def test_unusable_rows_and_utilities_are_refused():
    rows = voted("a", "b", 3, 1)
    with pytest.raises(ValueError, match=r"expected finite utilities \[2, 2\], found \[2\]"):
        score(rows, np.zeros(2))
    with pytest.raises(ValueError, match="with 1 not finite"):
        score(rows, np.array([[0, np.nan], [0, 0]]))
    with pytest.raises(ValueError, match=r"row 1 \(f:2\): expected two completions.*found 3"):
        score([rows[0], Row("", ("a", "b", "c"), (1, 2, 3), source="f:2")], np.zeros((2, 2)))


def test_rankings_are_measured_by_order_and_by_votes():
    rows = [
        Row("", ("a", "b", "c"), (1, 2, 2), 2.0, source="f:1"),
        Row("", ("a", "b", "c"), (2, 1, -1), 1.0, source="f:2", votes=(1.0, 3.0, 0.0)),
        Row("", ("a", "b"), (1, 1), 5.0, source="f:3"),  # orders nothing
    ]
    utilities = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0], [9.0, 0.0, 7.0]])
    found = score_rankings(rows, utilities)
    first = -math.log(math.exp(1) / np.exp(utilities[0]).sum())  # the other two are tied
    assert found["log_loss"] == pytest.approx((2 * first + math.log(2)) / 3)
    assert found["accuracy"] == (2 * 2 + 0.5) / (2 * 2 + 1)
    law = np.exp(utilities[1]) / np.exp(utilities[1]).sum()
    share_kl = 0.25 * math.log(0.25 / law[0]) + 0.75 * math.log(0.75 / law[1])
    assert found["share_kl"] == pytest.approx(share_kl)
