"""Selecting rows: whether a row is kept does not depend on unrelated rows."""

import itertools

import pytest

from shatter.data import (
    Row,
    comparisons,
    demonstrations,
    pair_labels,
    without_preference,
)

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
OTHER = {"role": "assistant", "content": "hey"}

FALSE = Row("p", ("bad",), (2,), source="a:1")
TRUE = Row("p", ("good",), (1,), source="a:2")
SHOWN = Row("q", ("so",), (0,), source="a:3")
PAIR = Row("q", ("a", "b"), (1, 2), source="a:4")
TIE = Row("q", ("a", "b"), (1, 1), source="a:5")
RANKED = Row("q", ("a", "b", "c"), (2, -1, 2), source="a:6")
ONE_SHOWN = Row("q", ("a", "b"), (-1, 1), source="a:7")
EVERY = [FALSE, TRUE, SHOWN, PAIR, TIE, RANKED, ONE_SHOWN]


@pytest.mark.parametrize("size", range(1, len(EVERY) + 1))
def test_a_completion_labelled_false_is_never_a_demonstration(size):
    """It does not matter which other rows there are."""
    for rows in itertools.combinations(EVERY, size):
        kept, report = demonstrations(rows)
        assert kept == [row for row in rows if row is not FALSE]
        assert (report.read, report.kept, report.skipped) == (size, len(kept), size - len(kept))
        assert [str(problem) for problem in report.problems] == [
            "a:1: label: expected a completion to imitate: without a label, or labelled true, "
            "found false"
        ] * (FALSE in rows)


@pytest.mark.parametrize("size", range(1, len(EVERY) + 1))
def test_what_has_no_partner_is_named_by_line(size):
    for rows in itertools.combinations(EVERY, size):
        kept, report = comparisons(rows)
        are_labelled = {FALSE, TRUE} <= set(rows)
        lone = [row.source for row in rows if row in (SHOWN, ONE_SHOWN)]
        lone += [row.source for row in rows if row in (FALSE, TRUE) and not are_labelled]
        assert sorted(problem.source for problem in report.problems) == sorted(lone)
        joined = [FALSE._replace(completions=("bad", "good"), ranks=(2, 1))] * are_labelled
        assert kept == joined + [row for row in rows if row in (PAIR, TIE, RANKED)]
        assert (report.read, report.kept, report.skipped) == (size, len(kept), len(lone))


def test_people_who_chose_none_ask_nobody_to_imitate_anything():
    chose = Row("q", ("a", "b"), (1, 2), 3.0, votes=(3.0, 0.0, 2.0), source="a:8")
    chose_none = chose._replace(ranks=(1, 1), weight=2.0)
    equally_good = chose_none._replace(votes=None)
    kept, report = demonstrations([chose, chose_none, equally_good])
    assert kept == [chose, equally_good] and report.skipped == 1
    assert str(report.problems[0]) == (
        "a:8: votes: expected votes for a completion to imitate, found 2 for none"
    )


def test_what_a_lone_completion_lacks_is_said():
    (_, report) = comparisons([SHOWN, PAIR])
    assert str(report.problems[0]) == (
        "a:3: completions: expected at least two completions that were shown, or labels on "
        "completions of one prompt, found 1"
    )


def test_rows_without_a_preference_are_told_one_by_one():
    weightless = PAIR._replace(weight=0.0, source="a:8")
    found = without_preference([*EVERY, weightless])
    assert [problem.source for problem in found] == [
        *("a:1", "a:2", "a:3", "a:5", "a:6", "a:7", "a:8")
    ]
    assert "ranks: expected two completions of which one is better, found the ranks [2, 2]" in str(
        found[4]
    )
    assert "weight: expected a number above 0, found 0.0" in str(found[-1])
    assert not without_preference([PAIR, RANKED._replace(ranks=(2, -1, 1))])


def test_labels_of_one_prompt_become_one_row():
    def label(prompt, completion, rank, annotator="x"):
        return Row(prompt, (completion,), (rank,), annotator=annotator, source=f"{completion}:1")

    pair = Row("p", ("a", "b"), (1, 2), source="pair:1")
    rows = [
        label("p", "good", 1),
        label("only", "fine", 1),
        pair,
        label("p", "bad", 2),
        label("torn", "both", 1),
        label("p", "good", 1),  # the same label twice counts once
        label("torn", "both", 2),
        label("torn", "worse", 2),
        label((USER,), (ANSWER,), 2),
        label((dict(USER),), (OTHER,), 1, annotator="y"),
        Row("p", ("a",), (0,)),
    ]
    paired, report = pair_labels(rows)
    assert paired == [
        Row("p", ("good", "bad"), (1, 2), annotator="x", source="good:1"),
        pair,
        Row((USER,), ((ANSWER,), (OTHER,)), (2, 1), source=rows[8].source),
        rows[-1],
    ]
    assert (report.read, report.kept, report.skipped) == (11, 4, 4)
    assert [(problem.source, problem.found) for problem in report.problems] == [
        ("fine:1", "no completion labelled False"),
        ("both:1", "both labels on one completion"),
        ("both:1", "both labels on one completion"),
        ("worse:1", "no completion labelled True"),
    ]


def test_the_weight_of_labels_is_the_mean_of_the_completions():
    good, bad = TRUE._replace(weight=3.0), FALSE._replace(weight=2.0)
    rows, _ = pair_labels([bad, good])
    assert [row.weight for row in rows] == [2.5]
    rows, report = pair_labels([bad, good, good._replace(weight=1.0, source="a:8")])
    assert [(row.completions, row.ranks, row.weight) for row in rows] == [
        (("bad", "good"), (2, 1), 2.5)
    ]
    assert report.skipped == 0
    rows, _ = pair_labels([FALSE, TRUE])
    assert rows[0].weight == 1.0
