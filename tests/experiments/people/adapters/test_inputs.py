"""Persons who are followed are not among the others, and counts are those worked out by hand."""

import dataclasses

import numpy as np
import pytest

from experiments.people.adapters.config import Config
from experiments.people.adapters.inputs import draw_followed, make_cells, without_followed
from experiments.people.persons import Followed, Person
from experiments.people.polls import Poll, Question, new_questions
from shatter.cli.common.binary import UsageError
from tests.experiments.people.test_people import made_up

NOTHING = np.zeros((0, 2), int)


def five_people() -> tuple[Poll, Followed]:
    """Returns a poll of two questions, of which persons 0 and 4 are followed.

    Person 0 is of group 1, as are 1 and 2; person 3 has no group, and 4 alone is of group 2.
    """
    questions = [Question(f"{n}", (" a", " b"), f"unit {n}") for n in range(2)]
    answers = np.array(
        [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1), (4, 0, 1), (0, 1, 1), (1, 1, 1), (3, 1, 0)]
    )
    counts = 100.0 * np.ones((2, 3, 2))  # as published: no matter
    poll = Poll(questions, ("x", "y"), counts, answers, np.array([1, 1, 1, 0, 2]))
    judged, choosing = (
        [Person(name, group, NOTHING, NOTHING, NOTHING)] for name, group in ((0, 1), (4, 2))
    )
    return poll, Followed(judged, choosing)


def test_a_question_has_as_many_answers_as_said_without_those_of_persons_who_are_followed():
    cells = make_cells(*five_people(), 1000.0)
    # Question 0: persons 1 and 2 of group 1 want a and b, person 3 without a group wants b: thirds.
    # Question 1: person 1 wants b and person 3 wants a: halves. Group 2 had person 4 alone.
    expected = {
        (0, 0): [0, 1000 / 3],
        (0, 1): [1000 / 3, 1000 / 3],
        (0, 2): [0, 0],
        (1, 0): [500, 0],
        (1, 1): [0, 500],
    }
    assert list(zip(cells.question, cells.owner, strict=True)) == list(expected)
    np.testing.assert_allclose(cells.counts, list(expected.values()), rtol=1e-6)


def test_heads_learn_old_questions_from_the_same_people_and_are_judged_by_published_shares():
    poll, followed = five_people()
    is_new = new_questions(poll, np.random.default_rng(3))
    own = without_followed(poll, followed, 3).counts
    by_hand = np.array([[[1, 2], [1, 1], [0, 0]], [[1, 1], [0, 1], [0, 0]]])
    assert is_new.sum() == 1
    np.testing.assert_array_equal(own[~is_new], by_hand[~is_new])
    np.testing.assert_array_equal(own[is_new], poll.counts[is_new])


def test_half_as_many_others_choose_and_nobody_does_both():
    config = Config(numbers_of_answers=(1,), max_persons=8)
    judged, choosing = draw_followed(config, made_up(), 0)
    assert (len(judged), len(choosing)) == (8, 4)
    assert len({person.name for person in (*judged, *choosing)}) == 12
    few = draw_followed(dataclasses.replace(config, max_persons=1000), made_up(), 0)
    assert tuple(map(len, few)) == (20, 10)


def test_too_many_answers_are_refused_with_the_mend():
    config = Config(numbers_of_answers=(0, 1, 4, 40))
    with pytest.raises(UsageError, match=r"more than 40 answers .* found 0: lower the largest"):
        draw_followed(config, made_up(), 0)
