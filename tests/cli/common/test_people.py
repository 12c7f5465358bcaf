"""Measures against soft labels, by group and by person equal sums by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax

from shatter.cli.common import people
from shatter.data import Row


def test_soft_labels_of_rows_by_hand():
    rows = (
        Row("", ("a", "b"), (1, 2), 3.0),
        Row("", ("b", "a"), (1, 2), 1.0),  # of the same comparison, in another order
        Row("", ("a", "b"), (1, 1), 5.0),
        Row("", ("a", "b", "c"), (2, 1, 2), 1.0),
        Row("", ("a", "b", "c"), (2, 1, -1), 9.0),  # c was not shown
        Row("", ("a", "b", "d"), (2, 1, 2), 0.5, votes=(0.0, 2.0, 0.0)),
        Row("", ("a", "b", "e"), (2, 1, 2), 2.0),  # one answer, whatever it weighs
    )
    utilities = np.array([[0.3, 0.1, 0], [0.1, 0.3, 0], [0.3, 0.1, 0], *[[1, 2, 3]] * 4], float)
    pair, three = log_softmax([0.3, 0.1]), log_softmax([1.0, 2.0, 3.0])
    cross = -(0.75 * pair[0] + 0.25 * pair[1]), -three[1]
    noise = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    distance = 2 * abs(np.exp(pair[0]) - 0.75), 2 * (1 - np.exp(three[1]))
    assert people.soft_scores(rows, utilities) == pytest.approx(
        {
            "soft_cross_entropy": np.mean(cross),
            "soft_kl": (sum(cross) - noise) / 2,
            "soft_manhattan": np.mean(distance),
        },
        rel=1e-5,
    )
    assert people.soft_scores(rows[3:5], utilities[3:5]) == {}


def test_persons_by_hand():
    rows = (
        Row("", ("a", "b"), (1, 2), 3.0, annotator="ann", group="g"),
        Row("", ("a", "c"), (2, 1), 1.0, annotator="ann", group="h"),
        Row("", ("a", "b"), (1, 1), annotator="ann"),
        Row("", ("a", "b"), (1, 2)),
        Row("", ("a", "b", "c"), (1, 1, 2), annotator="bob", group="g"),
    )
    utilities = np.array([[1.0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    ann, bob = people.person_scores(rows, utilities)
    losses = -log_softmax([1.0, 0.0])[0], -log_softmax([0.5, 0.0])[1]
    assert ann._asdict() == pytest.approx(
        {
            "annotator": "ann",
            "group": "",
            "answers": 2,
            "log_loss": (3 * losses[0] + losses[1]) / 4,
            "error_rate": 0.25,
        }
    )
    assert (bob.group, bob.answers) == ("g", 1) and np.isnan(bob.error_rate)
    assert bob.log_loss == pytest.approx(np.log(3))  # c is last in one of three
    assert people.group_rows(rows, 1) == {"g": [0, 4], "h": [1]}
    assert people.group_rows(rows, 2) == {"g": [0, 4]}


def test_all_measures_of_a_file():
    rows = [
        Row("", ("a", "b"), (1, 2), annotator=f"p{n % 6}", group=("g", "h")[n % 6 == 5])
        for n in range(12)
    ]
    utilities = np.tile([0.4, 0.0], (12, 1))
    utilities[5] = utilities[11] = 0.0, 0.4
    scores, persons = people.split_scores(rows, utilities)
    low, high = -log_softmax([0.4, 0.0])
    assert [person.annotator for person in persons] == [f"p{n}" for n in range(6)]
    assert scores["person_log_loss"] == pytest.approx((5 * low + high) / 6)
    assert scores["person_error_rate"] == pytest.approx(1 / 6)
    assert scores["group=g/log_loss"] == pytest.approx(low)
    assert scores["group=g/soft_kl"] == pytest.approx(low)  # they all chose the first
    assert not any(name.startswith("group=h") for name in scores)  # of one person
    everyone, _ = people.split_scores(rows, utilities, min_group_size=1)
    assert everyone["group=h/log_loss"] == pytest.approx(high)
