from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from shatter.ensembles.epinet import epinet
from shatter.types import MEMBER_AXIS

start = lambda ensemble, seed=0: jax.jit(ensemble.init)(jax.random.key(seed))
one_of = lambda tree, m=0: jax.tree.map(lambda leaf: np.asarray(leaf)[m], tree)
lift = lambda ensemble: jax.jit(jax.vmap(ensemble.apply, in_axes=(None, 0, None)))
SMALL = partial(epinet, 3, prior_scale=0.7, index_size=2, hidden=(4,))


def features(seed, *shape):
    """Features of mean square 1."""
    values = np.random.default_rng(seed).normal(size=shape)
    return values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True))


def moved(own, seed=9):
    """Returns members whose trained parameters have moved, by the same step in all members."""
    rng = np.random.default_rng(seed)
    move = lambda leaf: np.asarray(leaf) + rng.normal(size=leaf.shape[1:])
    return own.replace(params=jax.tree.map(move, own.params))


def network(params, inputs):
    """One hidden layer, in numpy."""
    first, last = jax.tree.map(np.asarray, params)
    values = inputs @ first["kernel"] / np.sqrt(len(first["kernel"])) + first["bias"]
    return np.maximum(values, 0) @ last["kernel"] / np.sqrt(len(last["kernel"]))


def prior_part(shared, index, inputs):
    networks = [jax.tree.map(lambda leaf, i=i: leaf[i], shared) for i in range(len(index))]
    parts = [z * network(p, inputs)[..., 0] for z, p in zip(index, networks, strict=True)]
    return np.sum(parts, axis=0) / np.sqrt(len(index))


@pytest.mark.slow
def test_a_member_starts_as_its_prior_part(float64):
    ensemble = SMALL(num_members=5)
    shared, own = start(ensemble)
    inputs = features(0, 2, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    assert scores.shape == (5, 2, 6)
    for m in range(5):
        expected = 0.7 * prior_part(shared, np.asarray(own.index[m]), inputs)
        np.testing.assert_allclose(scores[m], expected, rtol=1e-11, atol=1e-14)
    assert np.all(np.std(scores, axis=0) > 0.01)  # members disagree before data
    np.testing.assert_array_equal(own.params.mean[0]["kernel"], np.zeros((5, 3, 1)))
    first, last = own.params.learnable
    np.testing.assert_array_equal(last["kernel"], np.zeros((5, 4, 2)))
    assert first["kernel"].shape == (5, 5, 4)  # features and index
    assert len(np.unique(first["kernel"])) == 20  # the same in all members


def test_a_score_is_mean_and_learnable_and_prior(float64):
    ensemble = SMALL(num_members=5)
    shared, own = start(ensemble)
    own, inputs = moved(own), features(0, 2, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    for m in range(5):
        params, index = one_of((own.params, own.index), m)
        both = np.concatenate([inputs, np.broadcast_to(index, (2, 6, 2))], axis=-1)
        mean = (inputs @ params.mean[0]["kernel"])[..., 0] / np.sqrt(3)
        learned = network(params.learnable, both) @ index / np.sqrt(2)
        expected = 0.7 * (mean + learned + prior_part(shared, index, inputs))
        np.testing.assert_allclose(scores[m], expected, rtol=1e-11, atol=1e-13)
    padded = lambda own: ensemble.apply(shared, own, inputs, valid=np.zeros((2, 6), bool))
    np.testing.assert_allclose(jax.jit(jax.vmap(padded))(own), scores, rtol=1e-12)


@pytest.mark.slow
def test_the_prior_part_has_the_scale_of_the_prior():
    ensemble, num_draws = epinet(5, num_members=1, prior_scale=1.7, index_size=3, hidden=(6,)), 8000
    inputs = features(1, 4, 5).astype(np.float32)

    def one(key):
        shared, own = ensemble.init(key)
        return ensemble.apply(shared, jax.tree.map(lambda leaf: leaf[0], own), inputs)

    scores = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws)))
    assert np.all(np.abs(scores.mean(axis=0)) < 4.5 * scores.std(axis=0) / np.sqrt(num_draws))
    error = 4.5 * np.std(scores**2, axis=0) / np.sqrt(num_draws)
    assert np.all(error < 0.2 * 1.7**2)
    assert np.all(np.abs(np.mean(scores**2, axis=0) - 1.7**2) < error)


def test_indices_are_standard_normal():
    index = np.asarray(start(SMALL(num_members=10_000))[1].index)
    np.testing.assert_allclose(index.mean(axis=0), 0, atol=4.5 / 100)
    np.testing.assert_allclose(index.T @ index / 10_000, np.eye(2), atol=4.5 * np.sqrt(2) / 100)


def test_only_the_trained_parameters_have_a_gradient(float64):
    ensemble = SMALL(num_members=2)
    shared, own = start(ensemble)
    member = one_of(moved(own))
    inputs = jnp.asarray(features(2, 6, 3))
    total = lambda *args: jnp.sum(ensemble.apply(*args))
    by_shared, by_own, by_inputs = jax.jit(jax.grad(total, (0, 1, 2)))(shared, member, inputs)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.zeros(leaf.shape)), by_shared)
    np.testing.assert_array_equal(by_own.index, np.zeros(2))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(by_own.params))
    # The gradient of the features comes from the linear head alone, not from the epinet.
    slope = 0.7 * member.params.mean[0]["kernel"][:, 0] / np.sqrt(3)
    np.testing.assert_allclose(by_inputs, np.stack([slope] * 6), rtol=1e-12)
    of_params = lambda params: ensemble.apply(shared, member.replace(params=params), inputs)
    check_grads(jax.jit(of_params), (member.params,), order=1)


def choice_loss(ensemble, shared, pairs, counts, own, anchor, weights):
    """Choices of the first of each pair, `counts` of 40."""
    scores = ensemble.apply(shared, own, pairs)
    margins = scores[:, 0] - scores[:, 1]
    nll = counts * jax.nn.softplus(-margins) + (40 - counts) * jax.nn.softplus(margins)
    return jnp.sum(weights * nll) + ensemble.penalty(own, anchor)


def test_the_tied_gradient_is_the_mean_of_the_members(float64):
    ensemble = SMALL(num_members=5)
    shared, anchors = start(ensemble)
    own, pairs = moved(anchors), features(3, 7, 2, 3)
    counts = np.random.default_rng(4).binomial(40, 0.5, size=7)
    weights = ensemble.observation_weights(jax.random.key(1), (7,))
    gradient = jax.jit(jax.grad(partial(choice_loss, ensemble, shared, pairs, counts)))
    one_by_one = [gradient(*one_of((own, anchors, weights), m)) for m in range(5)]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    tied = jax.jit(jax.vmap(ensemble.combine_gradients, axis_name=MEMBER_AXIS))(together)

    def check(tied, together):
        assert np.all(np.ptp(together, axis=0) > 0)  # the members have different gradients
        expected = np.broadcast_to(together.mean(axis=0), together.shape)
        np.testing.assert_allclose(tied, expected, rtol=1e-12, atol=1e-13)

    jax.tree.map(check, tied.params.learnable[-1], together.params.learnable[-1])
    jax.tree.map(check, tied.params.mean, together.params.mean)
    hidden = lambda tree: jax.tree.leaves(tree.params.learnable[0])
    for one, several in zip(hidden(tied), hidden(together), strict=True):
        expected = np.broadcast_to(several.mean(axis=0), several.shape)
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-13)
    # The index stays as it is, whatever its gradient.
    nudged = together.replace(index=np.ones((5, 2)))
    tied = jax.vmap(ensemble.combine_gradients, axis_name=MEMBER_AXIS)(nudged)
    np.testing.assert_array_equal(tied.index, np.zeros((5, 2)))


def test_the_penalty_is_of_the_prior_of_the_trained_parameters(float64):
    ensemble = SMALL(num_members=5)
    own = start(ensemble)[1]
    np.testing.assert_array_equal(jax.jit(jax.vmap(ensemble.penalty))(own, own), np.zeros(5))
    away = jax.tree.map(lambda leaf: leaf + 0.3, own)
    # 3 parameters of the mean; of the learnable network 5 x 4 + 4 and 4 x 2, at twice the variance.
    expected = np.full(5, (3 + 32 / 2) * 0.3**2 / 2)
    np.testing.assert_allclose(jax.jit(jax.vmap(ensemble.penalty))(away, own), expected, rtol=1e-12)
    weights = np.asarray(ensemble.observation_weights(jax.random.key(1), (3000,)))
    assert weights.shape == (5, 3000)
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=4.5 / np.sqrt(3000))
    np.testing.assert_allclose(weights.var(axis=1), 1, atol=4.5 * np.sqrt(8 / 3000))


def fit(ensemble, shared, anchors, pairs, counts, num_steps):
    weights = ensemble.observation_weights(jax.random.key(1), counts.shape)
    loss = partial(choice_loss, ensemble, shared, pairs, counts)
    optimizer = optax.adam(0.03)

    def step(carry, _):
        def of_member(own, state, anchor, weights):
            gradient = ensemble.combine_gradients(jax.grad(loss)(own, anchor, weights))
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(own, updates), state

        return jax.vmap(of_member, axis_name=MEMBER_AXIS)(*carry, anchors, weights), None

    start = anchors, jax.vmap(optimizer.init)(anchors)
    return jax.jit(lambda start: jax.lax.scan(step, start, length=num_steps)[0][0])(start)


@pytest.mark.slow
def test_data_make_members_agree_where_they_are_and_tied_parameters_stay_tied():
    ensemble = epinet(6, num_members=12, prior_scale=2.0, index_size=6, hidden=(16,))
    shared, anchors = start(ensemble)
    # Pairs of features that lie in the first three directions; there are no data on the others.
    observed, elsewhere = np.zeros((2, 30, 2, 6), np.float32)
    observed[..., :3], elsewhere[..., 3:] = features(7, 2, 30, 2, 3) * np.sqrt(2)
    law = 1 / (1 + np.exp(-(observed[:, 0] - observed[:, 1]) @ [1, -1, 0.5, 0, 0, 0]))
    counts = np.random.default_rng(6).binomial(40, law).astype(np.float32)
    after = fit(ensemble, shared, anchors, observed, counts, 300)

    def check(after, before):
        np.testing.assert_array_equal(after, np.broadcast_to(after[:1], after.shape))
        assert np.any(after != before)

    jax.tree.map(check, after.params, anchors.params)
    np.testing.assert_array_equal(after.index, anchors.index)

    def margins(own, pairs):
        scores = np.asarray(lift(ensemble)(shared, own, pairs))
        return scores[..., 0] - scores[..., 1]

    disagreement = lambda *args: np.mean(np.std(margins(*args), axis=0))
    known = disagreement(after, observed)
    assert known < 0.35 * disagreement(anchors, observed)
    assert disagreement(after, elsewhere) > 2 * known
    predicted = np.mean(1 / (1 + np.exp(-margins(after, observed))), axis=0)
    assert np.mean(np.abs(predicted - law)) < 0.06


def test_an_epinet_without_hidden_layers(float64):
    # (A x + B z) . z is all that a linear network can add: the mean moves with x, and A tilts it.
    ensemble = epinet(3, num_members=4, prior_scale=0.7, index_size=2, hidden=())
    shared, own = start(ensemble)
    own, inputs = moved(own), features(5, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    for m in range(4):
        params, index = one_of((own.params, own.index), m)
        prior = np.asarray(shared[0]["kernel"])[..., 0].T @ index / np.sqrt(3 * 2)
        kernel = params.learnable[0]["kernel"] @ index / np.sqrt(5 * 2)
        slope = params.mean[0]["kernel"][:, 0] / np.sqrt(3) + kernel[:3] + prior
        expected = 0.7 * (inputs @ slope + index @ kernel[3:])
        np.testing.assert_allclose(scores[m], expected, rtol=1e-11, atol=1e-13)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_members >= 1, found 0"):
        SMALL(num_members=0)
    with pytest.raises(ValueError, match=r"width >= 1, found \[3, 0, 4\]"):
        SMALL(num_members=2, index_size=0)
    with pytest.raises(ValueError, match=r"width >= 1, found \[3, 2, 0\]"):
        SMALL(num_members=2, hidden=(0,))


@pytest.mark.slow
def test_features_of_another_width_are_refused():
    ensemble = SMALL(num_members=1)
    shared, own = start(ensemble)
    with pytest.raises(AssertionError):
        ensemble.apply(shared, one_of(own), jnp.zeros((2, 4)))
