"""The Laplace learner within a run: its belief, its prediction, what arms see of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from experiments.active import learners
from experiments.active.process import make_process
from experiments.common.chunks import Chunk
from tests.experiments.active.test_process import LAPLACE, WIDTH, problems

pytestmark = pytest.mark.slow  # whole runs of an experiment


def direct_fit(state, prior_scale=1.0):
    """Returns mean and covariance of a logistic regression of all answers so far, by SciPy."""
    comparisons = jax.tree.map(np.asarray, state.interaction.store.comparisons)
    rows = slice(int(state.interaction.store.size))
    features = np.asarray(state.interaction.shared[1]["features"], np.float64) / WIDTH**0.5
    items, ranks = comparisons.query.item_ids[rows], comparisons.ranks[rows]
    gaps = features[items[:, 0]] - features[items[:, 1]]
    first = np.where(ranks[:, 0] == ranks[:, 1], 0.5, ranks[:, 0] < ranks[:, 1])

    def loss(theta):
        odds = gaps @ theta
        nats = np.logaddexp(0, odds) - first * odds
        slope = gaps.T @ (expit(odds) - first) + theta / prior_scale**2
        return nats.sum() + theta @ theta / (2 * prior_scale**2), slope

    mean = minimize(loss, np.zeros(WIDTH), jac=True, tol=1e-12).x
    chance = expit(gaps @ mean)
    curvature = (gaps.T * chance * (1 - chance)) @ gaps + np.eye(WIDTH) / prior_scale**2
    return mean, np.linalg.inv(curvature)


def test_round_by_round_the_belief_is_that_of_a_direct_fit():
    setting = dataclasses.replace(LAPLACE, batches=(6,), until=(18,))
    made = make_process(setting, "v_optimal")
    problem = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), problems((3, 4)))
    state, _ = jax.jit(made.start)(problem)
    own = state.interaction.members.params
    np.testing.assert_allclose(own.covariance, np.eye(WIDTH))
    step = jax.jit(made.rounds, static_argnums=2)
    ties = 0
    for number in range(3):
        state, _ = step(state, jnp.asarray(number), Chunk(1, 6))
        own = state.interaction.members.params
        mean, covariance = direct_fit(state)
        np.testing.assert_allclose(own.mean, mean, atol=2e-5)
        np.testing.assert_allclose(own.covariance, covariance, atol=2e-5)
        ranks = np.asarray(state.interaction.store.comparisons.ranks[: 6 * (number + 1)])
        ties = np.sum(ranks[:, 0] == ranks[:, 1])
    assert state.interaction.store.size == 18 and ties > 0


def test_the_prediction_is_the_integral_over_the_log_odds(float64):
    means, variances = np.array([0.0, 1.5, -2.0, 0.3]), np.array([1.0, 0.25, 4.0, 0.0])
    found = np.asarray(learners.integrated_choices(jnp.asarray(means), jnp.asarray(variances)))
    for row, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        exact = expit(mean)
        if variance:
            law = norm(mean, variance**0.5)
            exact = quad(lambda d, law=law: expit(d) * law.pdf(d), -30, 30, epsabs=1e-12)[0]
        np.testing.assert_allclose(np.exp(found[row]), [exact, 1 - exact], rtol=1e-6)


def test_arms_see_the_belief_and_members_drawn_from_it():
    rng = np.random.default_rng(0)
    num_members = 20_000
    learner = learners.laplace_learner(3, num_members=num_members, prior_scale=0.7, num_steps=4)
    table = {"features": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    process = learner.interaction(table, lambda *_: None, query=learners.blank_query(), capacity=4)
    state = jax.jit(process.init)(jax.random.key(0))
    own, pairs = state.members.params, jnp.array([[0, 1], [3, 2]])
    belief = learner.belief(state.shared, own, pairs)
    features = np.asarray(table["features"])[np.asarray(pairs)].reshape(4, 3)
    covariance = 0.49 * features @ features.T / 3
    np.testing.assert_allclose(belief.features.reshape(4, 3), features / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(belief.covariance, 0.49 * np.eye(3), rtol=1e-6)
    np.testing.assert_array_equal(belief.mean, np.zeros((2, 2)))
    utilities = np.asarray(learner.utilities(state.shared, own, pairs)).reshape(num_members, 4)
    error = 5 * np.abs(covariance).max() * (2 / num_members) ** 0.5
    np.testing.assert_allclose(np.cov(utilities.T), covariance, atol=error)
    gaps = utilities[:, [0, 2]] - utilities[:, [1, 3]]
    found = np.exp(learner.choices(state.shared, own, pairs))
    np.testing.assert_allclose(found[:, 0], expit(gaps).mean(axis=0), atol=5 / num_members**0.5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_a_tie_is_half_a_vote_for_each():
    ranks = jnp.array([[1, 2], [2, 1], [1, 1]])
    np.testing.assert_array_equal(learners.shares(ranks), [[1, 0], [0, 1], [0.5, 0.5]])
