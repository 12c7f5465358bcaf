"""Measures of utilities by votes equal sums by hand."""

import math

import numpy as np
import pytest

from shatter.cli.common.votes import held_out_scores, score, score_rankings
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


def ranked(*rows: tuple) -> list[Row]:
    """Returns rows made of (ranks, weight, votes)."""
    return [
        Row("", tuple("abcd"[: len(ranks)]), ranks, weight, source=f"f:{n}", votes=votes)
        for n, (ranks, weight, votes) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "present"),
    [
        ([((1, 1, 1), 1.0, None)], set()),  # a tie
        ([((1, -1, -1), 1.0, None)], set()),  # one response shown
        ([((1, 2, 3), 0.0, None)], set()),  # no weight
        ([((1, 1, 1), 1.0, (0.0, 0.0, 0.0, 3.0))], set()),  # nobody could say
        ([((1, 1, 1), 1.0, (2.0, 2.0, 2.0))], {"ranking_share_kl"}),
        ([((1,), 1.0, None)], set()),  # demonstrations
        (
            [((1, 1, 1), 9.0, None), ((1, 2), 1.0, None)],
            {"log_loss", "accuracy", "calibration_error"},
        ),
    ],
    ids=["tie", "one shown", "no weight", "no votes", "votes", "demonstrations", "one of two"],
)
def test_held_out_measures_of_nothing_are_absent(rows: list, present: set[str]):
    some = ranked(*rows)
    utilities = np.zeros((len(some), max(len(row.completions) for row in some)))
    found = held_out_scores(some, utilities)
    assert found.keys() == present and np.isfinite(list(found.values())).all()
    if "accuracy" in found:  # the tie counts for nothing, whatever it weighs
        half = {"log_loss": np.log(2), "accuracy": 0.5, "calibration_error": 0.5}
        assert found == pytest.approx(half)


def test_rows_that_compare_nothing_do_not_change_how_pairs_are_measured():
    pairs = ranked(((1, 2), 3.0, None), ((2, 1), 1.0, None))
    utilities = np.array([[0.3, -0.4], [0.1, 0.2]])
    alone = held_out_scores(pairs, utilities)
    assert "calibration_error" in alone
    others = ranked(((0,), 1.0, None), ((-1, 1, -1), 1.0, None))
    among = held_out_scores(
        [others[0], *pairs, others[1]],
        np.array([[9.0, 0.0, 0.0], [0.3, -0.4, 0.0], [0.1, 0.2, 0.0], [9.0, 9.0, 9.0]]),
    )
    assert among == alone


def test_rankings_among_pairs_have_measures_of_their_own():
    pairs = ranked(((1, 2), 3.0, None), ((2, 1), 1.0, None))
    rankings = ranked(((1, 2, 2), 2.0, None), ((3, 1, -1), 1.0, None))
    of_pairs = np.array([[0.3, -0.4, 0.0], [0.1, 0.2, 0.0]])
    of_rankings = np.array([[0.7, 0.1, -0.2], [0.4, 0.4, 9.0]])
    alone = held_out_scores(pairs, of_pairs) | held_out_scores(rankings, of_rankings)
    among = held_out_scores(
        [rankings[0], *pairs, rankings[1]],
        np.stack([of_rankings[0], *of_pairs, of_rankings[1]]),
    )
    assert among == alone
    first = -np.log(np.exp(0.7) / np.exp(of_rankings[0]).sum())
    assert among["ranking_log_loss"] == pytest.approx((2 * first + np.log(2)) / 3)
    assert among["ranking_accuracy"] == pytest.approx((2 * 2 + 0.5) / (2 * 2 + 1))
