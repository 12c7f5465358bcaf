from itertools import permutations

import numpy as np
import pytest

from experiments.inclusive import plackett_luce
from experiments.inclusive.arrays import Floats, Ints


def sample_rankings(utilities: Floats, num: int, rng: np.random.Generator) -> Ints:
    """Draws rankings: sorting by utility plus Gumbel noise gives the Plackett-Luce law."""
    return np.argsort(-(utilities + rng.gumbel(size=(num, len(utilities)))), axis=1)


def test_plackett_luce_log_prob_against_its_definition():
    utilities = np.array([1.0, 0.0, -0.5, 2.0])
    rankings = np.array(list(permutations(range(4))))
    log_probs = plackett_luce.plackett_luce_log_probs(utilities, rankings)
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-12)
    strengths = np.exp(utilities)
    for ranking, log_prob in zip(rankings, log_probs, strict=True):
        parts = [strengths[ranking[t]] / strengths[ranking[t:]].sum() for t in range(4)]
        assert log_prob == pytest.approx(np.log(parts).sum(), abs=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_plackett_luce_fit_against_brute_force(ridge: float):
    """No small step in any direction lowers the loss."""
    rng = np.random.default_rng(1)
    rankings = sample_rankings(np.array([1.0, 0.0, -0.5, -0.5]), 60, rng)
    weights = rng.exponential(size=60)
    fit = plackett_luce.fit_plackett_luce(rankings, weights=weights, ridge=ridge)

    def loss(u: Floats) -> float:
        log_probs = plackett_luce.plackett_luce_log_probs(u, rankings)
        return float(-weights @ log_probs + 0.5 * ridge * u @ u)

    best = loss(fit)
    for step in 1e-3 * rng.normal(size=(100, 4)):
        assert loss(fit + step) >= best - 1e-9
        slope = (loss(fit + step) - loss(fit - step)) / 2e-3
        assert slope == pytest.approx(0, abs=1e-3)


def test_plackett_luce_of_two_items_is_bradley_terry():
    rankings = np.array([[0, 1]] * 9 + [[1, 0]] * 3)
    fit = plackett_luce.fit_plackett_luce(rankings)
    assert fit[0] - fit[1] == pytest.approx(np.log(3), abs=1e-6)


def test_plackett_luce_with_an_item_that_is_always_last():
    rankings = np.array([[0, 1, 2], [1, 0, 2]])
    fit = plackett_luce.fit_plackett_luce(rankings)
    assert np.isfinite(fit).all()
    assert fit[0] == pytest.approx(fit[1], abs=1e-4)
    assert fit[2] < fit[0] - 3


def test_what_is_not_a_ranking_is_refused():
    with pytest.raises(ValueError, match=r"ranking 1 is \[0, 0, 1\], not a permutation of 0\.\.2"):
        plackett_luce.fit_plackett_luce(np.array([[0, 1, 2], [0, 0, 1]]))


@pytest.mark.slow
def test_the_mixture_finds_two_opposed_segments():
    rng = np.random.default_rng(2)
    utilities = np.array([2.0, 0.5, -0.5, -2.0])
    rankings = np.concatenate(
        [sample_rankings(utilities, 300, rng), sample_rankings(-utilities, 100, rng)]
    )
    mixture = plackett_luce.fit_mixture_plackett_luce(rankings, 2, seed=0)
    major = mixture.weights.argmax()
    assert mixture.weights[major] == pytest.approx(0.75, abs=0.08)
    np.testing.assert_allclose(mixture.utilities[major], utilities, atol=0.5)
    np.testing.assert_allclose(mixture.utilities[1 - major], -utilities, atol=0.9)
    single = plackett_luce.fit_plackett_luce(rankings)
    alone = plackett_luce.plackett_luce_log_probs(single, rankings).sum()
    assert mixture.log_likelihood > alone + 50


@pytest.mark.slow
def test_one_component_is_plackett_luce():
    rankings = sample_rankings(np.array([1.0, 0.0, -1.0]), 100, np.random.default_rng(3))
    mixture = plackett_luce.fit_mixture_plackett_luce(rankings, 1, seed=0, ridge=0.5)
    single = plackett_luce.fit_plackett_luce(rankings, ridge=0.5)
    np.testing.assert_allclose(mixture.utilities[0], single, atol=1e-4)
