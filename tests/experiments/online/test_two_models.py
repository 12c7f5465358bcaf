"""The pipeline online: gradients of the policy, retraining, who is asked, and that it learns."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.online import measures, process
from experiments.online.arms import ARMS
from experiments.online.members import make_ensemble, next_token_laws
from experiments.online.population import make_rater
from experiments.online.two_models import _policy_objective, two_models
from shatter import ensembles, training
from tests.experiments.online.worlds import load, one_of, read_everything

pytestmark = pytest.mark.slow  # each compiles several steps


def make_policy(world, fixed, scale):
    one = make_ensemble(world, fixed.params, jnp.asarray(scale), num_members=2)
    own = jax.jit(one.init)(jax.random.key(5))[1]
    return one_of(own, 0), one_of(own, 1)


def test_the_policys_mean_gradient_is_that_of_the_expected_win_rate(folder, tmp_path, float64):
    """And of the KL from the anchor; the nudge drops out of the mean."""
    world, fixed = load(folder, tmp_path, "closed", policy_batch=64, beta=0.3, nudge=0.2)
    policy, anchor = make_policy(world, fixed, 3.0)
    everything = read_everything(world, fixed)
    heads = ensembles.prior_heads(everything.features.shape[-1], num_members=1, prior_scale=1.0)
    own_heads = heads.init(jax.random.key(1))[1]
    weights = lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape[1:])
    point = jax.tree.map(weights, own_heads)._replace(particle=jnp.zeros(()))
    rewards = heads.apply((), point, everything.features)  # [P, V]

    def exact(own):
        laws = jnp.exp(next_token_laws(world, fixed.params, own))
        wins = jax.nn.sigmoid(rewards[:, :, None] - rewards[:, None, :])
        beaten = jnp.einsum("pxy,py->px", wins, jax.lax.stop_gradient(laws))
        of_anchor = jnp.exp(next_token_laws(world, fixed.params, anchor))
        kl = jnp.sum(of_anchor * (jnp.log(of_anchor) - jnp.log(laws)), axis=-1)
        return jnp.mean(-jnp.sum(laws * beaten, axis=-1) + 0.3 * kl)

    def sampled(own, key):
        objective = partial(_policy_objective, world, fixed, heads)
        return jax.grad(lambda own: objective(own, (anchor, point), key, None)[0])(own)

    @jax.jit
    def both(own):
        draws = jax.lax.map(partial(sampled, own), jax.random.split(jax.random.key(3), 200))
        return jax.grad(exact)(own), draws

    expected, draws = both(policy)
    norm = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for want, found in zip(jax.tree.leaves(expected), jax.tree.leaves(draws), strict=True):
        error = np.std(found, axis=0) / len(found) ** 0.5
        assert np.all(np.abs(np.mean(found, axis=0) - want) < 5 * error + 1e-9)
        assert np.abs(error).max() < 0.2 * norm  # the check is sharp


def run_rounds(world, fixed, arm, num_rounds, observe):
    """Returns what is observed of the state before the first round and after each, `[1 + R]`."""

    @jax.jit
    def run(fixed):
        learner = two_models(world, fixed, ARMS[arm])
        see = partial(observe, learner, fixed)
        state = learner.interaction.init(jax.random.key(0))
        _, seen = training.run_rounds(
            learner.interaction,
            make_rater(world, fixed),
            lambda state: {"seen": see(state)},
            state,
            jax.random.key(1),
            num_rounds=num_rounds,
        )
        join = lambda first, others: jnp.concatenate([first[None], others])
        return jax.tree.map(join, see(state), seen["seen"])

    return run(fixed)


def policy_of(learner, fixed, state):
    return state.policy.params, state.policy.step, state.anchor


def test_a_retrained_policy_moves_at_the_end_of_periods_alone(folder, tmp_path):
    world, fixed = load(folder, tmp_path, "closed", period=2, num_rounds=4, policy_steps=2)
    policies, steps, _ = run_rounds(world, fixed, "offline", 4, policy_of)
    assert steps.tolist() == [0, 0, 4, 4, 12]  # again as long as all rounds so far
    flat = jnp.concatenate([leaf.reshape(5, -1) for leaf in jax.tree.leaves(policies)], axis=1)
    moves = [bool(jnp.any(after != before)) for before, after in pairwise(flat)]
    assert moves == [False, True, False, True]


def test_the_anchor_is_the_moving_average(folder, tmp_path, float64):
    world, fixed = load(folder, tmp_path, "closed", policy_steps=1, anchor_decay=0.9)
    policies, _, anchors = run_rounds(world, fixed, "online", 2, policy_of)
    for policy, found in zip(*map(jax.tree.leaves, (policies, anchors)), strict=True):
        anchor = policy[0]
        for t in (1, 2):
            anchor = 0.9 * anchor + 0.1 * policy[t]
            np.testing.assert_allclose(found[t], anchor, rtol=1e-12)


@pytest.mark.parametrize("arm", ["online", "information_directed"])
def test_a_pipeline_learns_what_people_like(folder, tmp_path, arm):
    """Its samples win more often than the base's after a few rounds of many answers."""
    world, fixed = load(
        folder,
        tmp_path,
        "closed",
        utility="tilt",
        num_rounds=6,
        queries_per_round=64,
        num_candidates=8,
        num_steps=40,
        policy_steps=20,
        policy_rate=3e-2,
    )
    fixed = process.make_fixed(world, fixed.params)

    def measured(learner, fixed, state):
        heads = jax.tree.leaves(state.rewards.members.params)[0].shape[0]
        return measures.closed(world, fixed, learner.speaker(state)) | {"heads": jnp.array(heads)}

    found = run_rounds(world, fixed, arm, 6, measured)
    assert found["heads"][0] == {"online": 1, "information_directed": 17}[arm]
    np.testing.assert_allclose(found["win_rate"][0], 0.5, atol=1e-5)
    np.testing.assert_allclose(found["kl_to_base"][0], 0.0, atol=1e-6)
    assert found["win_rate"][-1] > 0.53
