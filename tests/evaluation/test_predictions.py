import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.evaluation import (
    disagreement,
    dyadic_inputs,
    dyadic_joint_log_loss,
    joint_log_loss,
    marginal_log_loss,
)

marginal_loss, joint_loss = map(jax.jit, (marginal_log_loss, joint_log_loss))


def softmax(utilities):
    weights = np.exp(utilities)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_marginal_and_joint_log_loss(float64):
    probs = np.random.default_rng(1).uniform(
        0.1, 0.9, size=(4, 3, 5)
    )  # members, label sets, labels
    marginal = -np.log(probs.mean(axis=0))
    joint = -np.log(probs.prod(axis=-1).mean(axis=0))
    np.testing.assert_allclose(marginal_loss(np.log(probs)), marginal, rtol=1e-13)
    np.testing.assert_allclose(joint_loss(np.log(probs)), joint, rtol=1e-13)


def test_the_joint_loss_of_members_that_agree_is_the_sum_of_the_marginal_losses(float64):
    log_probs = np.log(np.stack([np.random.default_rng(2).uniform(0.1, 0.9, size=5)] * 4))
    joint = joint_loss(log_probs)
    np.testing.assert_allclose(joint, np.sum(marginal_loss(log_probs)), rtol=1e-13)
    np.testing.assert_allclose(joint, -np.sum(log_probs[0]), rtol=1e-13)


def test_only_the_joint_loss_tells_ignorance_from_noise():
    # Ten answers to one question, all alike. Both ensembles say 0.5 to each alone.
    noise = np.log(np.full((2, 10), 0.5, np.float32))
    ignorance = np.array([[0.0] * 10, [-90.0] * 10], np.float32)
    np.testing.assert_allclose(marginal_loss(noise), np.full(10, np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(marginal_loss(ignorance), np.full(10, np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(joint_loss(noise), 10 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(joint_loss(ignorance), np.log(2), rtol=1e-6)


def test_impossible_labels_cost_much_but_no_nan():
    loss = joint_loss(np.array([[-1e30, -1.0], [-1.0, -1e30]], np.float32))
    assert np.isfinite(loss)
    assert loss > 1e29


@pytest.mark.parametrize("num_anchors", [2, 3])
def test_dyadic_inputs_are_of_few_kinds(num_anchors):
    num_keys, num_inputs, num_labels = 4_000, 5, 10
    draw = partial(dyadic_inputs, num_labels=num_labels, num_anchors=num_anchors)
    keys = jax.random.split(jax.random.key(0), num_keys)
    inputs = np.asarray(jax.jit(jax.vmap(lambda key: draw(key, num_inputs)))(keys))
    assert inputs.shape == (num_keys, num_labels)
    assert max(len(np.unique(row)) for row in inputs) == num_anchors
    chances = np.bincount(inputs[:, 0], minlength=num_inputs) / num_keys
    assert np.all(np.abs(chances - 0.2) < 4.5 * np.sqrt(0.2 * 0.8 / num_keys))
    # Two labels have one input if they have one anchor, or two anchors that are alike.
    alike = 1 / num_anchors + (1 - 1 / num_anchors) / num_inputs
    frequency = np.mean(inputs[:, 3] == inputs[:, 7])
    assert abs(frequency - alike) < 4.5 * np.sqrt(alike * (1 - alike) / num_keys)


def test_the_dyadic_joint_loss_is_its_expectation_on_average():
    rng = np.random.default_rng(3)
    members = rng.normal(scale=1.5, size=(3, 2, 2))  # three members, two queries, two responses
    truth = rng.normal(scale=1.5, size=(2, 2))
    probs, true_probs = softmax(members), softmax(truth)
    mean = square = 0.0
    pairs = list(itertools.product(range(2), repeat=2))
    for anchors, picks, labels in itertools.product(pairs, repeat=3):
        inputs = [anchors[pick] for pick in picks]
        chance = np.prod([true_probs[i, y] for i, y in zip(inputs, labels, strict=True)]) / 16
        joint = probs[:, inputs, labels].prod(axis=1).mean()
        mean += chance * -np.log(joint)
        square += chance * np.log(joint) ** 2
    num_keys = 20_000
    keys = jax.random.split(jax.random.key(0), num_keys)
    draw = lambda key, members, truth: dyadic_joint_log_loss(key, members, truth, num_labels=2)
    draws = jax.jit(jax.vmap(draw, in_axes=(0, None, None)))
    losses = np.asarray(draws(keys, jnp.asarray(members), jnp.asarray(truth)), float)
    assert abs(losses.mean() - mean) < 4.5 * np.sqrt((square - mean**2) / num_keys)
    np.testing.assert_allclose(losses.var(), square - mean**2, rtol=0.1)


def test_the_dyadic_joint_loss_wants_one_truth_a_query():
    with pytest.raises(AssertionError):
        dyadic_joint_log_loss(jax.random.key(0), jnp.zeros((3, 4, 2)), jnp.zeros((5, 2)))


@pytest.mark.slow
def test_disagreement_is_the_spread_of_log_odds(float64):
    rng = np.random.default_rng(0)
    utilities = rng.normal(size=(5, 7, 3))
    variances = [
        np.var(utilities[:, q, i] - utilities[:, q, j])
        for q in range(7)
        for i in range(3)
        for j in range(i + 1, 3)
    ]
    np.testing.assert_allclose(disagreement(utilities), np.sqrt(np.mean(variances)), rtol=1e-12)
    shifted = utilities + rng.normal(size=(5, 7, 1))
    np.testing.assert_allclose(disagreement(shifted), disagreement(utilities), rtol=1e-12)
    assert disagreement(np.broadcast_to(utilities[:1], utilities.shape)) < 1e-12
    with pytest.raises(AssertionError):
        disagreement(utilities[0])
