"""Three levels learned jointly against the closed form of the Gaussian model, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.people.adapters import hierarchy
from experiments.people.adapters.hierarchy import Levels, Scales
from shatter import ensembles

GROUPS = np.array([1, 2, 2, 0, 1])  # of five persons, the last of whom has no answers
SCALES = Scales(1.3, 0.8, 0.5)
ANCHOR = np.array([0.4, -1.0])


def linear_answers():
    """Returns owners, inputs and answers: of everybody, of groups and of four of the persons."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(7), [2, 3, 0, 4, 1, 3, 2])  # group 2 answers by its persons alone
    return owner, rng.normal(size=(len(owner), 2)), rng.normal(size=len(owner))


def posterior_mean():
    """The posterior mean `[8, 2]` of all levels by their joint covariance: they are sums."""
    owner, x, y = linear_answers()
    own = np.zeros((8, 8))  # which draws a level is the sum of: population, two groups, persons
    own[:, 0] = 1
    own[1, 1] = own[2, 2] = 1
    for person, group in enumerate(GROUPS):
        own[3 + person, 3 + person] = 1
        if group:
            own[3 + person, group] = 1
    deviations = np.array([SCALES.population, *[SCALES.group] * 2, *[SCALES.person] * 5])
    covariance = own * deviations**2 @ own.T
    between = covariance[:, owner][..., None] * x  # of levels' entries with answers' means
    of_answers = covariance[np.ix_(owner, owner)] * (x @ x.T) + np.eye(len(y))
    weights = np.linalg.solve(of_answers, y - x @ ANCHOR)
    return ANCHOR + np.einsum("lnd,n->ld", between, weights)


def fitted(scales=SCALES, num_steps=60):
    owner, x, y = linear_answers()
    loss = lambda own: 0.5 * jnp.sum((y - jnp.sum(x * own["b"][owner], axis=-1)) ** 2)
    anchor = {"b": jnp.array(ANCHOR)}
    start = hierarchy.at_anchor(anchor, 2)
    run = lambda start: hierarchy.fit(loss, anchor, GROUPS, scales, start, num_steps=num_steps)
    return jax.jit(run)(start)


def test_the_joint_minimum_is_the_posterior_mean(float64):
    levels = fitted()
    np.testing.assert_allclose(hierarchy.stacked(levels)["b"], posterior_mean(), atol=1e-8)
    # A person without answers is at the group, exactly, and one without a group or answers at the
    # population; the group without answers of its own has moved, because its persons pull it.
    np.testing.assert_array_equal(levels.persons["b"][4], levels.groups["b"][0])
    assert np.abs(levels.groups["b"][1] - levels.population["b"]).max() > 0.05


def test_half_the_square_of_the_offsets_is_the_penalty(float64):
    rng = np.random.default_rng(1)
    offsets = Levels(*({"b": jnp.array(rng.normal(size=s))} for s in ((2,), (2, 2), (5, 2))))
    anchor = {"b": jnp.array(ANCHOR)}
    own = hierarchy.placed(offsets, anchor, GROUPS, SCALES)
    upper = ensembles.hierarchy_penalty(
        *(own.groups, own.population, anchor),
        person_scale=SCALES.group,
        population_scale=SCALES.population,
    )
    centres = np.concatenate([own.population["b"][None], own.groups["b"]])[GROUPS]
    of_persons = np.sum((own.persons["b"] - centres) ** 2) / (2 * SCALES.person**2)
    half = sum(np.sum(np.square(level["b"])) for level in offsets) / 2
    np.testing.assert_allclose(upper + of_persons, half)


@pytest.mark.slow
def test_a_narrow_prior_leaves_everybody_at_the_anchor(float64):
    levels = fitted(Scales(1e-5, 1e-5, 1e-5), num_steps=5)
    repeated = np.tile(ANCHOR, (8, 1))
    np.testing.assert_allclose(hierarchy.stacked(levels)["b"], repeated, atol=1e-8)
