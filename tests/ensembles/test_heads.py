from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from shatter.ensembles.heads import apply_mlp, heads, zero_mlp

start = lambda ensemble, seed=0: jax.jit(ensemble.init)(jax.random.key(seed))
one_of = lambda tree, m=0: jax.tree.map(lambda leaf: np.asarray(leaf)[m], tree)
lift = lambda ensemble: jax.jit(jax.vmap(ensemble.apply, in_axes=(None, 0, None)))


def features(seed, *shape):
    """Features of mean square 1."""
    values = np.random.default_rng(seed).normal(size=shape)
    return values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True))


def test_linear_heads_of_a_linear_gaussian_model_are_its_posterior(float64):
    # The objective is quadratic, so its minimiser is an affine function of the anchor and of the
    # targets, and the covariance of the members is exact without a single draw.
    rng = np.random.default_rng(0)
    noise_scale, prior_scale, size = 0.6, 1.7, 4
    inputs, targets = jnp.asarray(rng.normal(size=(3, size))), jnp.asarray(rng.normal(size=3))
    elsewhere = rng.normal(size=(5, size))
    ensemble = heads(size, num_members=2, prior_scale=prior_scale)
    origin, unravel = ravel_pytree(zero_mlp(size, (), 1))

    def objective(own, anchor, targets):
        errors = (targets - ensemble.apply((), unravel(own), inputs)) / noise_scale
        return 0.5 * jnp.sum(errors**2) + ensemble.penalty(unravel(own), unravel(anchor))

    def scores(anchor, targets):
        hessian = jax.hessian(objective)(origin, anchor, targets)
        own = jnp.linalg.solve(hessian, -jax.grad(objective)(origin, anchor, targets))
        return ensemble.apply((), unravel(own), elsewhere)

    # The same posterior in function space: a Gaussian process with kernel c^2 x . x' / D.
    kernel = lambda a, b: prior_scale**2 * np.asarray(a) @ np.asarray(b).T / size
    gain = kernel(elsewhere, inputs) @ np.linalg.inv(
        kernel(inputs, inputs) + noise_scale**2 * np.eye(3)
    )
    posterior = kernel(elsewhere, elsewhere) - gain @ kernel(inputs, elsewhere)
    np.testing.assert_allclose(jax.jit(scores)(origin, targets), gain @ targets, rtol=1e-11)
    by_anchor, by_targets = jax.jit(jax.jacobian(scores, (0, 1)))(origin, targets)
    covariance = by_anchor @ by_anchor.T + noise_scale**2 * by_targets @ by_targets.T
    np.testing.assert_allclose(covariance, posterior, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 2)])
def test_scores_before_data_have_the_scale_of_the_prior(hidden):
    num_members, prior_scale = 20_000, 1.7
    ensemble = heads(5, num_members=num_members, prior_scale=prior_scale, hidden=hidden)
    shared, own = start(ensemble)
    unit = features(1, 4, 5).astype(np.float32)
    inputs = np.concatenate([unit, 3 * unit])
    scores = np.asarray(lift(ensemble)(shared, own, inputs))
    assert np.all(np.abs(scores.mean(axis=0)) < 4.5 * scores.std(axis=0) / np.sqrt(num_members))
    other = prior_scale**2 * (1 + 8 / 2 ** len(hidden))  # features of mean square 9
    expected = np.repeat([prior_scale**2, other], 4)
    error = 4.5 * np.std(scores**2, axis=0) / np.sqrt(num_members)
    assert np.all(error < 0.15 * expected)
    assert np.all(np.abs(np.mean(scores**2, axis=0) - expected) < error)


def test_scores_of_one_hidden_layer_have_the_arc_cosine_covariance():
    num_members = 20_000
    ensemble = heads(5, num_members=num_members, prior_scale=1.0, hidden=(6,))
    shared, own = start(ensemble, 1)
    inputs = features(2, 4, 5).astype(np.float32)
    scores = np.asarray(lift(ensemble)(shared, own, inputs))
    products = scores[:, :, None] * scores[:, None, :]
    # The covariance of sqrt(2) ReLU of two standard normals with correlation cos(angle).
    angle = np.arccos(np.clip((inputs @ inputs.T / 5 + 1) / 2, -1, 1))
    expected = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    error = 4.5 * products.std(axis=0) / np.sqrt(num_members)
    assert np.all(np.abs(products.mean(axis=0) - expected) < error)


def test_members_by_vmap_are_members_one_by_one(float64):
    ensemble = heads(3, num_members=4, prior_scale=0.7, hidden=(5, 2))
    shared, own = start(ensemble)
    assert jax.tree.map(jnp.shape, own) == [
        {"kernel": (4, 3, 5), "bias": (4, 5)},
        {"kernel": (4, 5, 2), "bias": (4, 2)},
        {"kernel": (4, 2, 1)},
    ]
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(own))
    inputs = features(3, 2, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    assert scores.shape == (4, 2, 6)
    for m in range(4):
        first, second, last = one_of(own, m)
        values = np.maximum(inputs @ first["kernel"] / np.sqrt(3) + first["bias"], 0)
        values = np.maximum(values @ second["kernel"] / np.sqrt(5) + second["bias"], 0)
        expected = 0.7 * (values @ last["kernel"])[..., 0] / np.sqrt(2)
        np.testing.assert_allclose(scores[m], expected, rtol=1e-12, atol=1e-14)
    padded = lambda own: ensemble.apply(shared, own, inputs, valid=np.zeros((2, 6), bool))
    np.testing.assert_allclose(jax.jit(jax.vmap(padded))(own), scores, rtol=1e-12)


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_members_disagree_before_data(hidden):
    ensemble = heads(3, num_members=8, prior_scale=0.7, hidden=hidden)
    shared, own = start(ensemble)
    scores = np.asarray(lift(ensemble)(shared, own, features(4, 6, 3).astype(np.float32)))
    differences = scores[:, 1:] - scores[:, :1]  # choices depend on differences alone
    assert np.all(differences.std(axis=0) > 0.1)
    for leaf in jax.tree.leaves(own):
        assert len(np.unique(leaf)) == leaf.size


def test_the_penalty_is_of_a_unit_prior_and_weights_are_exponential(float64):
    ensemble = heads(3, num_members=4, prior_scale=0.7, hidden=(5,))
    own = start(ensemble)[1]
    np.testing.assert_array_equal(jax.jit(jax.vmap(ensemble.penalty))(own, own), np.zeros(4))
    moved = jax.tree.map(lambda leaf: leaf + 0.3, own)
    expected = np.full(4, 25 * 0.3**2 / 2)  # 15 + 5 parameters of the hidden layer, 5 of the last
    np.testing.assert_allclose(
        jax.jit(jax.vmap(ensemble.penalty))(moved, own), expected, rtol=1e-12
    )
    weights = np.asarray(ensemble.observation_weights(jax.random.key(1), (3000,)))
    assert weights.shape == (4, 3000)
    assert weights.min() > 0
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=4.5 / np.sqrt(3000))
    np.testing.assert_allclose(weights.var(axis=1), 1, atol=4.5 * np.sqrt(8 / 3000))


def test_gradients_of_the_network(float64):
    params = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape)),
        zero_mlp(3, (5,), 2),
    )
    check_grads(jax.jit(apply_mlp), (params, jnp.asarray(features(5, 4, 3))), order=1)


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_data_make_members_agree_where_they_are(hidden):
    rng = np.random.default_rng(6)
    ensemble = heads(6, num_members=8, prior_scale=2.0, hidden=hidden)
    shared, anchors = start(ensemble)
    # Pairs of features that lie in the first three directions; there are no data on the others.
    observed, elsewhere = np.zeros((2, 30, 2, 6), np.float32)
    observed[..., :3], elsewhere[..., 3:] = features(7, 2, 30, 2, 3) * np.sqrt(2)
    law = 1 / (1 + np.exp(-(observed[:, 0] - observed[:, 1]) @ [1, -1, 0.5, 0, 0, 0]))
    counts = rng.binomial(40, law).astype(np.float32)
    weights = ensemble.observation_weights(jax.random.key(1), (30,))
    optimizer = optax.adam(0.05)

    def loss(own, anchor, weights):
        scores = ensemble.apply(shared, own, observed)
        margins = scores[:, 0] - scores[:, 1]
        nll = counts * jax.nn.softplus(-margins) + (40 - counts) * jax.nn.softplus(margins)
        return jnp.sum(weights * nll) + ensemble.penalty(own, anchor)

    def step(carry, _):
        own, state = carry
        grads = jax.vmap(jax.grad(loss))(own, anchors, weights)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(own, updates), state), None

    run = jax.jit(lambda own: jax.lax.scan(step, (own, optimizer.init(own)), length=200)[0][0])
    after = run(anchors)

    def disagreement(own, pairs):
        scores = np.asarray(lift(ensemble)(shared, own, pairs))
        return np.mean(np.std(scores[..., 0] - scores[..., 1], axis=0))

    known = disagreement(after, observed)
    assert known < 0.25 * disagreement(anchors, observed)
    assert disagreement(after, elsewhere) > 4 * known
    if not hidden:  # directions without data keep their prior
        np.testing.assert_allclose(
            disagreement(after, elsewhere), disagreement(anchors, elsewhere), rtol=1e-5
        )


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_heads_at_the_centre_score_nothing_and_keep_their_hidden_layers(hidden, float64):
    make = partial(heads, 3, num_members=2, prior_scale=1.7, hidden=hidden)
    shared, anchors = start(make())
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(make().start)(anchors), anchors)
    starts = jax.jit(jax.vmap(make(start="centre").start))(anchors)
    *inner, last = starts
    jax.tree.map(np.testing.assert_array_equal, inner, anchors[:-1])
    assert not np.any(last["kernel"])
    np.testing.assert_array_equal(lift(make())(shared, starts, features(0, 5, 3)), 0.0)
    penalties = jax.vmap(make().penalty)(starts, anchors)
    expected = 0.5 * np.sum(np.asarray(anchors[-1]["kernel"]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(penalties, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="start must be"):
        make(start="zero")


def test_sizes_are_checked():
    make = partial(heads, prior_scale=1.0)
    with pytest.raises(ValueError, match="num_members >= 1, found 0"):
        make(3, num_members=0)
    with pytest.raises(ValueError, match=r"width >= 1, found \[0\]"):
        make(0, num_members=2)
    with pytest.raises(ValueError, match=r"width >= 1, found \[3, 4, 0\]"):
        make(3, num_members=2, hidden=(4, 0))


def test_features_of_another_kind_are_refused():
    ensemble = heads(3, num_members=1, prior_scale=1.0)
    member = one_of(start(ensemble)[1])
    with pytest.raises(AssertionError):
        ensemble.apply((), member, jnp.zeros((2, 4)))
    with pytest.raises(AssertionError):
        ensemble.apply((), member, jnp.zeros((2, 3), int))
