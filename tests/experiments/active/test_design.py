"""Designs of pairs by their differences of features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from experiments.active.design import LinearBelief, joint_infomax, v_optimal
from shatter import exploration

NUM_PAIRS, WIDTH = 12, 5


def belief():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(NUM_PAIRS, 2, WIDTH)))
    root = rng.normal(size=(WIDTH, WIDTH))
    covariance = jnp.asarray(root @ root.T)
    return LinearBelief(features @ jnp.asarray(rng.normal(size=WIDTH)), features, covariance)


def by_hand(given, usable, num_queries, *, joint=False):
    """Returns the greedy batch of a design, each score from the covariances of all log-odds.

    If `joint`, the score is by how much the entropy of the parameters falls.
    """
    gaps = np.asarray(given.features[:, 0] - given.features[:, 1])
    mean = np.asarray(given.mean[:, 0] - given.mean[:, 1])
    covariance = gaps @ np.asarray(given.covariance) @ gaps.T
    parameters = np.asarray(given.covariance)
    weights, batch = None, []
    for _ in range(num_queries):
        square = 1 + np.pi / 8 * np.diag(covariance)
        p = expit(mean / np.sqrt(square))
        weights = p * (1 - p) * usable if weights is None else weights
        rates = p * (1 - p) / square
        scores = rates * (weights @ covariance**2)
        if joint:
            scores = [entropy_drop(parameters, *one) for one in zip(rates, gaps, strict=True)]
            scores = np.array(scores)
            np.testing.assert_allclose(scores, -np.log(1 - rates * np.diag(covariance)) / 2)
        scores[~usable | np.isin(np.arange(NUM_PAIRS), batch)] = -1
        query = int(np.argmax(scores))
        batch.append(query)
        column = covariance[:, query]
        covariance = covariance - rates[query] * np.outer(column, column)
        parameters = learned(parameters, rates[query], gaps[query])
    return batch


def learned(parameters, rate, gap):
    """Returns the covariance of the parameters after an answer."""
    return parameters - rate * np.outer(parameters @ gap, parameters @ gap)


def entropy_drop(parameters, rate, gap):
    after = np.linalg.slogdet(learned(parameters, rate, gap))[1]
    return (np.linalg.slogdet(parameters)[1] - after) / 2


@pytest.mark.slow
def test_a_batch_is_that_of_the_covariances_of_all_pairs(float64):
    given = belief()
    valid = np.ones((NUM_PAIRS, 2), bool)
    valid[[1, 4], 1] = False
    for design in (v_optimal, joint_infomax):
        choose = jax.jit(design, static_argnames="num_queries")
        found = choose(jax.random.key(0), given, valid=valid, num_queries=8)
        expected = by_hand(given, valid.all(axis=1), 8, joint=design is joint_infomax)
        assert found.tolist() == expected


@pytest.mark.slow
def test_the_first_query_and_members_are_those_of_the_library(float64):
    given = belief()
    key = jax.random.key(0)
    dense = exploration.linear_belief(given.mean, given.features, given.covariance)
    first = v_optimal(key, given, num_queries=1)
    assert first.tolist() == exploration.v_optimal_choices(key, dense, num_queries=1).tolist()
    members = jnp.asarray(np.random.default_rng(1).normal(size=(6, NUM_PAIRS, 2)))
    np.testing.assert_array_equal(
        v_optimal(key, members, num_queries=4),
        exploration.v_optimal_choices(key, members, num_queries=4),
    )
    np.testing.assert_array_equal(
        joint_infomax(key, members, num_queries=4, num_outcomes=12),
        exploration.joint_infomax_queries(key, members, num_queries=4, num_outcomes=12),
    )
