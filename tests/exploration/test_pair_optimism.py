from functools import partial

import jax
import numpy as np
import pytest

from shatter.exploration import ucb


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 5.0])
def test_the_highest_bounds_of_members_normalised_over_the_candidates(coefficient, float64):
    tables = np.random.default_rng(0).normal(scale=2.0, size=(40, 5, 6))
    valid = np.array([True, True, False, True, True, True])
    keys = jax.random.split(jax.random.key(0), 40)
    choose = partial(ucb, valid=valid, num_responses=3, coefficient=coefficient)
    responses = jax.jit(jax.vmap(choose))(keys, tables)
    weights = np.exp(tables) * valid
    laws = np.log(weights[..., valid] / weights.sum(axis=-1, keepdims=True))
    bounds = laws.mean(axis=1) + coefficient * laws.std(axis=1)
    best = np.argsort(-bounds, axis=1)[:, :3]
    np.testing.assert_array_equal(responses, np.flatnonzero(valid)[best])
