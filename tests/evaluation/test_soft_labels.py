"""Measures against people who disagree equal their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr

from shatter import evaluation


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 6)
    shares[0] = [1, 0, 0, 0]
    return np.log(rng.dirichlet(np.ones(4), 6)), shares


def test_soft_labels_by_definition(case):
    log_probs, shares = case
    with jax.enable_x64(True):
        cross = evaluation.soft_cross_entropy(log_probs, shares)
        kl = evaluation.soft_kl(log_probs, shares)
        distance = evaluation.manhattan_distance(log_probs, shares)
    np.testing.assert_allclose(
        cross, [-s @ p for s, p in zip(shares, log_probs, strict=True)], rtol=1e-12
    )
    np.testing.assert_allclose(kl, rel_entr(shares, np.exp(log_probs)).sum(1), rtol=1e-10)
    expected = [sum(abs(np.exp(p) - s)) for s, p in zip(shares, log_probs, strict=True)]
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


@pytest.mark.slow
def test_a_model_that_is_right_and_responses_that_are_impossible(case):
    _, shares = case
    with np.errstate(divide="ignore"):
        log_probs = np.log(shares)  # -inf where nobody chose
    np.testing.assert_allclose(evaluation.soft_kl(log_probs, shares), 0, atol=1e-6)
    np.testing.assert_allclose(evaluation.manhattan_distance(log_probs, shares), 0, atol=1e-6)
    gradient = jax.grad(lambda p: evaluation.soft_kl(p, shares[0]))(log_probs[0])
    np.testing.assert_array_equal(gradient, [-1, 0, 0, 0])
    sure = jnp.array([0.0, -jnp.inf])
    assert evaluation.manhattan_distance(sure, jnp.array([0.0, 1.0])) == 2


def test_sampling_noise_is_the_floor_of_the_kl():
    """The docstring's (K - 1) / 2n, by enumeration of all samples of 400 people."""
    from scipy.stats import binom

    n, p = 400, 0.4
    counts = np.arange(n + 1)
    shares = np.stack([counts, n - counts], axis=1) / n
    law = np.log(np.array([p, 1 - p]))
    with jax.enable_x64(True):
        kl = np.asarray(evaluation.soft_kl(np.broadcast_to(law, shares.shape), shares))
    assert binom.pmf(counts, n, p) @ kl == pytest.approx(1 / (2 * n), rel=2e-2)


def test_persons_count_once():
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8], [0.2, 0.8]]))
    choices, persons = np.array([0, 1, 0, 0, 1]), np.array([0, 0, 2, 2, 2])
    errors = evaluation.choice_errors(log_probs, choices)
    np.testing.assert_array_equal(errors, [0, 1, 0.5, 1, 0])
    rates = evaluation.person_error_rates(log_probs, choices, persons, num_persons=3)
    np.testing.assert_allclose(rates, [0.5, np.nan, 0.5])
    weighted = evaluation.person_means(
        np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), num_persons=2, weights=np.array([3, 1, 2])
    )
    np.testing.assert_allclose(weighted, [1.5, 5])
