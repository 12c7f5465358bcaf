"""The measures of a division, with numbers that are worked out by hand."""

import numpy as np
import pytest

from experiments.people.adapters.config import Config
from experiments.people.adapters.division import Division, _person_loss, _share_measures
from experiments.people.adapters.hierarchy import Levels
from experiments.people.adapters.inputs import Answers
from experiments.people.adapters.programs import Programs
from experiments.people.persons import Person
from experiments.people.polls import Poll, Question

LEVELS = Levels({"b": np.zeros(())}, {"b": np.zeros(2)}, {"b": np.zeros(2)})
SAID = np.log([0.5, 0.75, 0.25, 0.9, 0.6])  # of the first option: population, groups, persons


@pytest.fixture
def division():
    """Returns three questions with two options, whose answers depend on the owner alone."""
    questions = [Question(f"{n}", (" a", " b"), f"unit {n}") for n in range(3)]
    counts = np.array(
        [
            [[9.0, 1], [9, 1], [9, 1]],  # old: not measured
            [[5, 5], [3, 1], [1, 1]],
            [[10, 0], [0, 0], [1, 3]],
        ]
    )
    poll = Poll(questions, ("x", "y"), counts, np.zeros((0, 3), int), np.array([1, 2]))
    first = np.stack([SAID, np.log1p(-np.exp(SAID))], axis=1)
    utilities = lambda own, owner, question: first[owner]
    programs = Programs(None, utilities, None, np.ones((3, 2), bool))
    return Division(Config(), poll, programs, np.array([False, True, True]), Answers([], [], []))


def kl(shares, law):
    return sum(p * np.log(p / q) for p, q in zip(shares, law, strict=True) if p)


def test_shares_are_measured_on_new_questions_by_the_population_and_by_each_group(division):
    found = _share_measures(division, LEVELS)
    # Everybody's shares are (1/2, 1/2) and (1, 0); the population says (1/2, 1/2).
    assert found["adapters/kl"] == pytest.approx(np.log(2) / 2, rel=1e-5)
    # Group 1 answered (3/4, 1/4), as its adapter says; group 2 (1/2, 1/2) and (1/4, 3/4), and its
    # adapter says (1/4, 3/4). Nobody of group 1 answered the last question.
    own = [0, kl((0.5, 0.5), (0.25, 0.75)), 0]
    assert found["adapters/group_kl"] == pytest.approx(np.mean(own), rel=1e-5)
    blind = [kl(shares, (0.5, 0.5)) for shares in ((0.75, 0.25), (0.5, 0.5), (0.25, 0.75))]
    assert found["adapters/blind_group_kl"] == pytest.approx(np.mean(blind), rel=1e-5)


def test_every_person_counts_once_under_the_adapter_that_is_asked(division):
    none = np.zeros((0, 2), int)
    persons = [
        Person(0, 1, none, none, np.array([(1, 0), (2, 1)])),
        Person(1, 0, none, none, np.array([(1, 0)])),  # without a group
    ]
    loss = lambda level: _person_loss(division, LEVELS, persons, level)
    assert loss("population") == pytest.approx(np.log(2))
    of_group = -np.log(0.75 * 0.25) / 2
    assert loss("groups") == pytest.approx((of_group + np.log(2)) / 2)
    own = (-np.log(0.9 * 0.1) / 2, -np.log(0.6))
    assert loss("persons") == pytest.approx(np.mean(own))
