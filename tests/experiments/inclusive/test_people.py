import numpy as np
import pytest

from experiments.inclusive import people
from experiments.inclusive.tables import Attribute

ANSWERS = np.array([0, 1, 1, -1, 2, 0])
WEIGHTS = np.array([1.0, 2.0, 1.0, 5.0, 3.0, 1.0])


def test_halves_divide_the_people():
    fit, held = people.split_people(101, seed=3)
    assert (len(fit), len(held)) == (50, 51)
    assert sorted([*fit, *held]) == list(range(101))
    np.testing.assert_array_equal(fit, people.split_people(101, seed=3)[0])
    assert not np.array_equal(fit, people.split_people(101, seed=4)[0])
    with pytest.raises(ValueError, match=r"1 people with fraction 0\.5: a part is empty"):
        people.split_people(1, seed=0)


def test_weighted_shares():
    np.testing.assert_allclose(people.weighted_shares(ANSWERS, WEIGHTS, 4), [0.25, 0.375, 0.375, 0])
    with pytest.raises(ValueError, match="nobody answered"):
        people.weighted_shares(np.array([-1]), np.array([1.0]), 2)


def test_group_shares_shrink_towards_everybody():
    groups = Attribute(("left", "right", "nobody"), np.array([0, 0, 1, 1, 1, -1]))
    shares = people.group_shares(ANSWERS, WEIGHTS, groups, 3, prior_strength=4.0)
    overall = people.weighted_shares(ANSWERS, WEIGHTS, 3)
    np.testing.assert_allclose(shares[0], (np.array([1, 2, 0]) + 4 * overall) / 7)
    np.testing.assert_allclose(shares[1], (np.array([0, 1, 3]) + 4 * overall) / 8)
    np.testing.assert_allclose(shares[2], overall)
    with pytest.raises(ValueError, match=r"nobody answered in groups \['nobody'\]"):
        people.group_shares(ANSWERS, WEIGHTS, groups, 3)


def test_wins_from_rankings():
    wins = people.wins_from_rankings(np.array([[2, 0, 1], [0, 1, 2]]))
    np.testing.assert_array_equal(wins, [[0, 2, 1], [0, 0, 1], [1, 1, 0]])


def test_ties_and_unrated_items_count_for_nobody():
    ratings = np.array([[5, 3, 3], [0, 4, 1]])
    wins = people.wins_from_ratings(ratings, ratings > 0)
    np.testing.assert_array_equal(wins, [[0, 1, 1], [0, 0, 1], [0, 0, 0]])


def test_answers_follow_luce_on_every_pair():
    shares = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    wins = people.sample_wins(shares, 100_000, np.random.default_rng(0))
    asked = wins + wins.T
    assert wins.sum() == 100_000
    first, second = np.triu_indices(5, k=1)
    np.testing.assert_allclose(asked[first, second], 10_000, atol=400)  # about 4 sd
    luce = shares[first] / (shares[first] + shares[second])
    np.testing.assert_allclose(wins[first, second] / asked[first, second], luce, atol=0.02)


def test_a_pair_that_nobody_chose_from_is_not_asked():
    wins = people.sample_wins(np.array([1.0, 0.0, 0.0]), 100, np.random.default_rng(0))
    assert wins[0].sum() == 100
