import numpy as np
import pytest
from scipy.special import expit, softmax

from experiments.inclusive import classical
from experiments.inclusive.arrays import Floats


def random_wins(num_items: int, seed: int) -> Floats:
    wins = np.random.default_rng(seed).poisson(6.0, (num_items, num_items)) + 1.0
    np.fill_diagonal(wins, 0)
    return wins


def test_bradley_terry_of_two_items_is_the_log_odds():
    utilities = classical.fit_bradley_terry(np.array([[0.0, 9.0], [3.0, 0.0]]))
    assert utilities[0] - utilities[1] == pytest.approx(np.log(3), abs=1e-8)
    assert utilities.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_bradley_terry_is_stationary(ridge: float):
    """Every item has won as often as the fit expects, up to the gradient of the ridge."""
    wins = random_wins(6, seed=0)
    utilities = classical.fit_bradley_terry(wins, ridge=ridge)
    expected = (wins + wins.T) * expit(utilities[:, None] - utilities[None, :])
    np.testing.assert_allclose(
        wins.sum(axis=1), expected.sum(axis=1) + ridge * utilities, atol=1e-4
    )


def test_bradley_terry_recovers_luce_shares_from_exact_counts():
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    wins = 1000 * shares[:, None] / (shares[:, None] + shares[None, :])
    np.testing.assert_allclose(softmax(classical.fit_bradley_terry(wins)), shares, atol=1e-6)


def test_where_no_maximum_exists_the_ridge_keeps_the_fit_finite():
    never_wins = np.array([[0.0, 5, 4], [3, 0, 4], [0, 0, 0]])
    utilities = classical.fit_bradley_terry(never_wins)
    assert np.isfinite(utilities).all()
    assert utilities.argmin() == 2
    np.testing.assert_allclose(
        utilities, classical.fit_bradley_terry(never_wins, ridge=classical.TINY_RIDGE)
    )
    np.testing.assert_array_equal(classical.fit_bradley_terry(np.zeros((3, 3))), np.zeros(3))


def test_bad_wins_are_refused():
    with pytest.raises(ValueError, match=r"square, found shape \(2, 3\)"):
        classical.fit_bradley_terry(np.ones((2, 3)))
    with pytest.raises(ValueError, match="finite and not negative"):
        classical.fit_pair_table(np.array([[0.0, -1.0], [1.0, 0.0]]))


def test_pair_tables():
    wins = np.array([[0.0, 3.0], [1.0, 0.0]])
    table = classical.fit_pair_table(wins, pseudo_count=1.0)
    np.testing.assert_allclose(table, [[0.5, 4 / 6], [2 / 6, 0.5]])
    loss = -(3 * np.log(4 / 6) + np.log(2 / 6)) / 4
    assert classical.pair_log_loss(table, wins) == pytest.approx(loss)
    luce = classical.luce_pair_table(np.array([np.log(2.0), 0.0]))
    np.testing.assert_allclose(luce, [[0.5, 2 / 3], [1 / 3, 0.5]])


def test_majority():
    shares = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    expected = [[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]
    np.testing.assert_allclose(classical.majority(shares, 0.9), expected)


def test_agglomerative_in_closed_form():
    """At beta = 1/2 it is p0 q^2 / Z, here worked out by hand."""
    q, p0 = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(classical.agglomerative(p0, q, 0.5), [0.32, 0.36, 0.24, 0.08])
    matched = q ** (1 - 1 / 0.5)  # the p0 at which it is the population's law
    np.testing.assert_allclose(classical.agglomerative(matched / matched.sum(), q, 0.5), q)
    zero = classical.agglomerative(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 0.5)
    np.testing.assert_array_equal(zero, [1.0, 0.0])


def test_kl():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0.25, 0.75])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(4)]
    np.testing.assert_allclose(classical.kl(p, q), expected)
    assert classical.kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
