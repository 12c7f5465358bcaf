from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from shatter.ensembles.heads import heads
from shatter.ensembles.prior_heads import prior_heads
from shatter.types import MEMBER_AXIS

start = lambda ensemble, seed=0: jax.jit(ensemble.init)(jax.random.key(seed))
one_of = lambda tree, m=0: jax.tree.map(lambda leaf: np.asarray(leaf)[m], tree)
lift = lambda ensemble: jax.jit(jax.vmap(ensemble.apply, in_axes=(None, 0, None)))
SMALL = partial(prior_heads, 3, prior_scale=0.7, hidden=(5,), prior_hidden=(4,))


def features(seed, *shape):
    """Features of mean square 1."""
    values = np.random.default_rng(seed).normal(size=shape)
    return values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True))


def network(params, inputs):
    """One hidden layer, in numpy."""
    first, last = jax.tree.map(np.asarray, params)
    values = inputs @ first["kernel"] / np.sqrt(len(first["kernel"])) + first["bias"]
    return (np.maximum(values, 0) @ last["kernel"])[..., 0] / np.sqrt(len(last["kernel"]))


def moved(own, seed=9):
    """Returns members whose trained parameters have moved; the point is the same in all."""
    rng = np.random.default_rng(seed)
    point = jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(size=leaf.shape[1:]), own.point)
    return own._replace(
        point=point,
        differential=jax.tree.map(
            lambda leaf: leaf + rng.normal(size=leaf.shape), own.differential
        ),
    )


@pytest.mark.slow
def test_a_score_is_point_and_prior_and_differential(float64):
    ensemble = SMALL(num_members=4)
    shared, own = start(ensemble)
    own, inputs = moved(own), features(0, 2, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    assert scores.shape == (4, 2, 6)
    for m in range(4):
        member = one_of(own, m)
        expected = network(member.point, inputs)
        if m:
            expected = expected + network(member.prior, inputs)
            expected = expected + network(member.differential, inputs)
        np.testing.assert_allclose(scores[m], 0.7 * expected, rtol=1e-11, atol=1e-13)
    padded = lambda own: ensemble.apply(shared, own, inputs, valid=np.zeros((2, 6), bool))
    np.testing.assert_allclose(jax.jit(jax.vmap(padded))(own), scores, rtol=1e-12)


def test_members_start_at_zero_and_at_their_priors(float64):
    ensemble = SMALL(num_members=5)
    shared, own = start(ensemble)
    inputs = features(0, 6, 3)
    scores = lift(ensemble)(shared, own, inputs)
    np.testing.assert_array_equal(scores[0], np.zeros(6))
    for m in range(1, 5):
        expected = 0.7 * network(one_of(own.prior, m), inputs)
        np.testing.assert_allclose(scores[m], expected, rtol=1e-11, atol=1e-14)
    assert np.all(np.std(scores[1:], axis=0) > 0.01)  # particles disagree before data
    hidden = own.differential[0]["kernel"]
    assert len(np.unique(hidden)) == hidden.size  # and learn from starts of their own


@pytest.mark.slow
@pytest.mark.parametrize("prior_hidden", [(), (7,)])
def test_particles_before_data_have_the_scale_of_the_prior(prior_hidden):
    num_members, prior_scale = 2_000, 1.7
    widths = {"hidden": (2,), "prior_hidden": prior_hidden}  # what is trained begins at zero
    ensemble = prior_heads(5, num_members=num_members, prior_scale=prior_scale, **widths)
    shared, own = start(ensemble)
    unit = features(1, 4, 5).astype(np.float32)
    scores = np.asarray(lift(ensemble)(shared, own, np.concatenate([unit, 3 * unit])))[1:]
    assert np.all(np.abs(scores.mean(axis=0)) < 4.5 * scores.std(axis=0) / np.sqrt(num_members))
    other = prior_scale**2 * (1 + 8 / 2 ** len(prior_hidden))  # features of mean square 9
    expected = np.repeat([prior_scale**2, other], 4)
    error = 4.5 * np.std(scores**2, axis=0) / np.sqrt(num_members)
    assert np.all(np.abs(np.mean(scores**2, axis=0) - expected) < error)


@pytest.mark.slow
def test_only_the_point_head_moves_the_point_and_only_a_particle_its_differential(float64):
    ensemble = SMALL(num_members=2)
    shared, own = start(ensemble)
    own, inputs = moved(own), jnp.asarray(features(2, 6, 3))
    total = lambda own: jnp.sum(ensemble.apply(shared, own, inputs))
    point, particle = (jax.jit(jax.grad(total))(one_of(own, m)) for m in range(2))
    is_zero = lambda tree: all(not np.any(leaf) for leaf in jax.tree.leaves(tree))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(point.point))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(particle.differential))
    for frozen in (point.differential, particle.point, point.prior, particle.prior):
        assert is_zero(frozen)
    assert point.particle == particle.particle == 0


def objective(ensemble, inputs, targets, own, anchor, weights):
    scores = ensemble.apply((), own, inputs)
    return 0.5 * jnp.sum(weights * (targets - scores) ** 2) + ensemble.penalty(own, anchor)


def fit(ensemble, own, inputs, targets, num_steps=40):
    """Adam, member by member as `training.members_learner` does."""
    weights = ensemble.observation_weights(jax.random.key(1), targets.shape)
    optimizer = optax.adam(0.05)

    def step(carry, _):
        def of_member(own, state, anchor, weights):
            gradient = jax.grad(partial(objective, ensemble, inputs, targets))(own, anchor, weights)
            updates, state = optimizer.update(ensemble.combine_gradients(gradient), state)
            return optax.apply_updates(own, updates), state

        return jax.vmap(of_member, axis_name=MEMBER_AXIS)(*carry, own, weights), None

    first = own, jax.vmap(optimizer.init)(own)
    return jax.jit(lambda first: jax.lax.scan(step, first, length=num_steps)[0][0])(first)


@pytest.mark.slow
def test_the_point_head_learns_as_if_it_were_alone(float64):
    inputs, targets = jnp.asarray(features(3, 9, 3)), jnp.asarray(features(4, 9))
    ensemble, alone = SMALL(num_members=5), SMALL(num_members=1)
    own, only = start(ensemble)[1], start(alone)[1]
    jax.tree.map(np.testing.assert_array_equal, one_of(own.point), one_of(only.point))
    after, point = fit(ensemble, own, inputs, targets), fit(alone, only, inputs, targets)
    for leaf, expected in zip(*map(jax.tree.leaves, (after.point, point.point)), strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        np.testing.assert_allclose(leaf[0], expected[0], rtol=1e-9, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, after.prior, own.prior)
    np.testing.assert_array_equal(after.particle, [0, 1, 1, 1, 1])
    jax.tree.map(
        np.testing.assert_array_equal, one_of(after.differential), one_of(own.differential)
    )


@pytest.mark.slow
def test_linear_particles_have_the_posteriors_covariance_around_the_point(float64):
    # The objective of a particle is quadratic in its differential, so its minimiser is an affine
    # function of prior and targets, and the law of the particles is exact without a single draw.
    rng = np.random.default_rng(0)
    noise_scale, prior_scale, size = 0.6, 1.7, 4
    inputs, targets = jnp.asarray(rng.normal(size=(3, size))), jnp.asarray(rng.normal(size=3))
    elsewhere = rng.normal(size=(5, size))
    ensemble = prior_heads(size, num_members=2, prior_scale=prior_scale)
    member, particle = (one_of(start(ensemble)[1], m) for m in range(2))
    weights = noise_scale**-2 * jnp.ones(3)

    def minimum(own, name, targets):
        origin, unravel = ravel_pytree(getattr(own, name))
        of = lambda flat: objective(
            ensemble, inputs, targets, own._replace(**{name: unravel(flat)}), own, weights
        )
        best = jnp.linalg.solve(jax.hessian(of)(origin), -jax.grad(of)(origin))
        return own._replace(**{name: unravel(best)})

    # The same posterior in function space: a Gaussian process with kernel c^2 x . x' / D.
    kernel = lambda a, b: prior_scale**2 * np.asarray(a) @ np.asarray(b).T / size
    gain = kernel(elsewhere, inputs) @ np.linalg.inv(
        kernel(inputs, inputs) + noise_scale**2 * np.eye(3)
    )
    posterior = kernel(elsewhere, elsewhere) - gain @ kernel(inputs, elsewhere)
    point = minimum(member, "point", targets)
    np.testing.assert_allclose(ensemble.apply((), point, elsewhere), gain @ targets, rtol=1e-11)
    residuals = targets - ensemble.apply((), point, inputs)

    def scores(prior, targets):
        own = particle._replace(point=point.point, prior=[{"kernel": prior[:, None]}])
        return ensemble.apply((), minimum(own, "differential", targets), elsewhere)

    origin = jnp.zeros(size)
    mean = ensemble.apply((), point, elsewhere) + gain @ residuals  # fitted once more
    np.testing.assert_allclose(jax.jit(scores)(origin, targets), mean, rtol=1e-11)
    by_targets = jax.jit(jax.jacobian(scores, 1))(origin, targets)
    # No gradient passes the prior, so the affine function's slope is its differences.
    each = jax.jit(jax.vmap(scores, in_axes=(0, None)))(jnp.eye(size), targets)
    by_prior = (np.asarray(each) - np.asarray(scores(origin, targets))).T
    covariance = by_prior @ by_prior.T + noise_scale**2 * by_targets @ by_targets.T
    np.testing.assert_allclose(covariance, posterior, rtol=1e-10, atol=1e-12)


def test_a_point_head_alone_is_a_centred_head_without_a_draw(float64):
    inputs = features(5, 6, 3)
    ensemble = prior_heads(3, num_members=1, prior_scale=0.7)
    own = start(ensemble)[1]
    other = heads(3, num_members=1, prior_scale=0.7)
    at = jax.tree.map(lambda leaf: leaf + 0.3, own.point)
    scores = lift(ensemble)((), own._replace(point=at), inputs)
    np.testing.assert_allclose(scores, lift(other)((), at, inputs), rtol=1e-13)
    np.testing.assert_allclose(
        ensemble.penalty(one_of(own._replace(point=at)), one_of(own)),
        other.penalty(one_of(at), one_of(own.point)),
        rtol=1e-13,
    )


def test_the_point_head_weighs_all_alike_and_particles_exponentially():
    weights = np.asarray(SMALL(num_members=4).observation_weights(jax.random.key(1), (3000,)))
    np.testing.assert_array_equal(weights[0], np.ones(3000))
    np.testing.assert_allclose(weights[1:].mean(axis=1), 1, atol=4.5 / np.sqrt(3000))
    np.testing.assert_allclose(weights[1:].var(axis=1), 1, atol=4.5 * np.sqrt(8 / 3000))


@pytest.mark.slow
def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_members >= 1, found 0"):
        SMALL(num_members=0)
    with pytest.raises(ValueError, match=r"width >= 1, found \[3, 0\]"):
        prior_heads(3, num_members=2, prior_scale=1.0, prior_hidden=(0,))
    ensemble = SMALL(num_members=1)
    with pytest.raises(AssertionError):
        ensemble.apply((), one_of(start(ensemble)[1]), jnp.zeros((2, 4)))
