import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.ensembles import draw_members, fit_laplace, laplace_covariance

NUM_QUERIES, NUM_RESPONSES, NUM_FEATURES, SCALE = 30, 3, 4, 0.7


def problem():
    """Returns choices of which some are ties, some have empty slots, some count more or not."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_QUERIES, NUM_RESPONSES, NUM_FEATURES))
    valid = rng.random((NUM_QUERIES, NUM_RESPONSES)) < 0.8
    valid[:2] = [[True, False, False], [False, False, False]]
    valid[2:, :2] = True
    shares = np.eye(NUM_RESPONSES)[rng.integers(2, size=NUM_QUERIES)] * valid
    shares[::5, :2] = 0.5
    weights = rng.integers(4, size=NUM_QUERIES).astype(float)
    return features, shares, valid, weights


def objective(theta, features, shares, valid, weights):
    """Returns minus the log-probability of the choices and of the parameters."""
    utilities = jnp.where(valid, features @ theta, 0.0)
    log_norm = jnp.log(jnp.sum(jnp.exp(utilities), axis=1, where=valid) + (~valid.any(axis=1)))
    chosen = jnp.sum(shares * (utilities - log_norm[:, None]), axis=1)
    return jnp.sum(theta**2) / (2 * SCALE**2) - jnp.sum(weights * chosen)


@pytest.mark.slow
def test_the_fit_is_the_minimum_and_its_covariance_the_inverse_of_the_hessian(float64):
    features, shares, valid, weights = problem()
    poisoned = np.where(valid[..., None], features, np.nan)
    fit = fit_laplace(poisoned, shares, valid=valid, weights=weights, prior_scale=SCALE)
    data = features, shares, valid, weights
    np.testing.assert_allclose(jax.grad(objective)(fit.mean, *data), 0, atol=1e-12)
    hessian = jax.hessian(objective)(fit.mean, *data)
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(hessian), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(fit.covariance, fit.covariance.T)


@pytest.mark.slow
def test_the_covariance_elsewhere_is_the_inverse_of_the_hessian_there(float64):
    features, _, valid, weights = problem()
    shares = valid / np.maximum(valid.sum(axis=1, keepdims=True), 1)  # any of sum 1
    theta = np.linspace(-1.0, 1.0, NUM_FEATURES)
    found = laplace_covariance(
        features, features @ theta, valid=valid, weights=weights, prior_scale=SCALE
    )
    hessian = jax.hessian(objective)(jnp.asarray(theta), features, shares, valid, weights)
    np.testing.assert_allclose(found, np.linalg.inv(hessian), rtol=1e-10, atol=1e-14)


def test_a_pair_is_the_logistic_regression_of_the_difference(float64):
    features, _, _, _ = problem()
    pairs, first = features[:, :2], np.random.default_rng(1).random(NUM_QUERIES)
    fit = fit_laplace(pairs, np.stack([first, 1 - first], axis=1), prior_scale=SCALE)
    gaps = pairs[:, 0] - pairs[:, 1]
    chance = 1 / (1 + np.exp(-gaps @ fit.mean))
    np.testing.assert_allclose(gaps.T @ (first - chance), fit.mean / SCALE**2, atol=1e-12)
    curvature = (gaps.T * chance * (1 - chance)) @ gaps + np.eye(NUM_FEATURES) / SCALE**2
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(curvature), rtol=1e-10)


@pytest.mark.slow
def test_weights_counts_and_repeated_rows_are_the_same(float64):
    features, shares, valid, weights = problem()
    by_weight = fit_laplace(features, shares, valid=valid, weights=weights, prior_scale=SCALE)
    counts = shares * weights[:, None]
    by_count = fit_laplace(features, counts, valid=valid, prior_scale=SCALE)
    rows = np.repeat(np.arange(NUM_QUERIES), weights.astype(int))
    repeated = fit_laplace(features[rows], shares[rows], valid=valid[rows], prior_scale=SCALE)
    for other in (by_count, repeated):
        np.testing.assert_allclose(other.mean, by_weight.mean, atol=1e-12)
        np.testing.assert_allclose(other.covariance, by_weight.covariance, atol=1e-13)


@pytest.mark.slow
def test_every_step_goes_down_from_anywhere_and_a_separable_problem_is_solved(float64):
    rng = np.random.default_rng(2)
    features = 20.0 * rng.normal(size=(40, 2, NUM_FEATURES))
    shares = np.eye(2)[np.argmax(features[..., 0], axis=1)]
    valid, weights = np.ones((40, 2), bool), np.full(40, 3.0)
    start = np.array([-9.0, 5.0, 0.0, 7.0])
    losses = []
    for num_steps in (0, 1, 2, 5, 30):
        fit = fit_laplace(
            features, shares, weights=weights, prior_scale=SCALE, start=start, num_steps=num_steps
        )
        losses.append(float(objective(fit.mean, features, shares, valid, weights)))
    assert all(np.diff(losses) <= 1e-12), losses
    slope = jax.grad(objective)(fit.mean, features, shares, valid, weights)
    np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_without_choices_the_belief_is_the_prior(float64):
    features, shares, valid, _ = problem()
    fit = fit_laplace(
        features, shares, valid=valid, weights=np.zeros(NUM_QUERIES), prior_scale=SCALE
    )
    np.testing.assert_array_equal(fit.mean, np.zeros(NUM_FEATURES))
    np.testing.assert_allclose(fit.covariance, SCALE**2 * np.eye(NUM_FEATURES), atol=1e-15)


@pytest.mark.slow
def test_vmapped_fits_are_the_fits_one_by_one_in_float32_too():
    features, shares, valid, weights = problem()
    features, shares = features.astype(np.float32), shares.astype(np.float32)
    weights = np.stack([weights, weights[::-1]]).astype(np.float32)
    one = lambda weights, scale: fit_laplace(
        features, shares, valid=valid, weights=weights, prior_scale=scale
    )
    scales = np.array([0.3, 2.0], np.float32)
    both = jax.jit(jax.vmap(one))(weights, scales)
    assert both.mean.dtype == np.float32
    for seed in range(2):
        alone = one(weights[seed], scales[seed])
        np.testing.assert_allclose(both.mean[seed], alone.mean, atol=1e-5)
        np.testing.assert_allclose(both.covariance[seed], alone.covariance, atol=1e-5)


def test_members_have_the_mean_and_the_covariance_that_they_are_drawn_from():
    mean = np.array([1.0, -2.0, 0.5], np.float32)
    root = np.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.3]], np.float32)
    covariance = root @ root.T  # singular
    num_members = 40_000
    drawn = np.asarray(draw_members(jax.random.key(0), mean, covariance, num_members))
    assert drawn.shape == (num_members, 3)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4.5 * 1.2 / num_members**0.5)
    error = 4.5 * 2.0 / num_members**0.5
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=error)
    flat = np.linalg.svd(root.T)[2][-1]  # the direction without variance
    np.testing.assert_allclose((drawn - mean) @ flat, 0, atol=2e-3)


@pytest.mark.parametrize(
    "changed",
    [
        {"features": np.zeros((NUM_QUERIES, NUM_FEATURES))},
        {"features": np.zeros((NUM_QUERIES, NUM_RESPONSES, NUM_FEATURES), int)},
        {"shares": np.zeros((NUM_QUERIES, NUM_RESPONSES + 1))},
        {"valid": np.ones((NUM_QUERIES, NUM_RESPONSES + 1), bool)},
        {"weights": np.ones(NUM_QUERIES + 1)},
        {"start": np.zeros(NUM_FEATURES + 1)},
    ],
)
def test_wrong_shapes_and_types_are_refused(changed):
    features, shares, valid, weights = problem()
    values = {"features": features, "shares": shares, "valid": valid, "weights": weights}
    with pytest.raises(AssertionError):
        fit_laplace(**{**values, **changed}, prior_scale=SCALE)
