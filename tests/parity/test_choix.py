"""Likelihoods and fits of choices and rankings against those of choix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judgements.baselines import bradley_terry
from shatter.choice import (
    luce_log_prob,
    luce_log_probs,
    plackett_luce_log_prob,
    plackett_luce_sample,
    ranks_log_prob,
)
from shatter.data import Row

choix = pytest.importorskip("choix", reason="parity of choice models needs choix")
pytestmark = pytest.mark.usefixtures("float64")

UTILITIES = np.array([0.7, -1.2, 0.1, 1.5, -0.4])
NUM_ITEMS = len(UTILITIES)


def draw_rankings(number: int) -> np.ndarray:
    """Rankings of all items, drawn by Plackett-Luce, `[number, K]`."""
    utilities = jnp.broadcast_to(UTILITIES, (number, NUM_ITEMS))
    return np.asarray(plackett_luce_sample(jax.random.key(0), utilities))


def test_log_likelihood_of_rankings():
    rankings = draw_rankings(20)
    utilities = jnp.broadcast_to(UTILITIES, rankings.shape)
    expected = choix.log_likelihood_rankings(rankings.tolist(), UTILITIES)
    total = jnp.sum(plackett_luce_log_prob(utilities, jnp.asarray(rankings)))
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    ranks = jnp.argsort(jnp.asarray(rankings), axis=1)  # of item i, its place
    total = jnp.sum(ranks_log_prob(utilities, ranks))
    np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_log_likelihood_of_choices_among_some_items():
    shown = [np.array(items) for items in ([0, 1], [4, 2, 3], [3, 1, 0, 2], [2, 4])]
    data = [(items[0], items[1:]) for items in shown]
    expected = choix.log_likelihood_top1(data, UTILITIES)
    by_luce = sum(luce_log_prob(jnp.asarray(UTILITIES[items]), jnp.array(0)) for items in shown)
    np.testing.assert_allclose(by_luce, expected, rtol=1e-12)
    first_only = [jnp.full(len(items), -1).at[0].set(0) for items in shown]
    pairs = zip(shown, first_only, strict=True)
    by_partial = sum(plackett_luce_log_prob(jnp.asarray(UTILITIES[i]), r) for i, r in pairs)
    np.testing.assert_allclose(by_partial, expected, rtol=1e-12)


def test_probabilities_of_a_choice():
    items = [3, 0, 2]
    expected = choix.probabilities(items, UTILITIES)
    np.testing.assert_allclose(jnp.exp(luce_log_probs(UTILITIES[items])), expected, rtol=1e-12)


def test_the_slope_of_the_likelihood_is_zero_at_the_fit_of_choix():
    rankings = draw_rankings(200)
    fitted = choix.ilsr_rankings(NUM_ITEMS, rankings.tolist())

    def mean_log_prob(utilities):
        rows = jnp.broadcast_to(utilities, rankings.shape)
        return jnp.mean(plackett_luce_log_prob(rows, jnp.asarray(rankings)))

    slope = jax.jit(jax.grad(mean_log_prob))
    np.testing.assert_allclose(slope(fitted), 0.0, atol=1e-6)
    assert np.abs(slope(fitted + np.array([0.1, 0, 0, 0, 0]))).max() > 1e-3


@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_bradley_terry_fit(ridge):
    """choix adds alpha |u|^2 to minus the log-likelihood, our fit ridge / 2 |u|^2."""
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(NUM_ITEMS, 2, replace=False) for _ in range(60)])
    first_wins = rng.random(60) < 1 / (1 + np.exp(UTILITIES[pairs[:, 1]] - UTILITIES[pairs[:, 0]]))
    ordered = np.where(first_wins[:, None], pairs, pairs[:, ::-1])
    expected = choix.opt_pairwise(NUM_ITEMS, ordered.tolist(), alpha=ridge / 2, tol=1e-10)

    text = "text {}".format
    row = lambda a, b: Row("prompt", (text(a), text(b)), ranks=(1, 2))
    utility = bradley_terry([row(a, b) for a, b in ordered.tolist()], ridge)
    fitted = utility([row(0, item) for item in range(NUM_ITEMS)])  # [K, 2]
    differences = fitted[:, 1] - fitted[:, 0]
    np.testing.assert_allclose(differences, expected - expected[0], atol=1e-5)
