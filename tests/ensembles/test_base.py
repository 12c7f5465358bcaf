from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from shatter.ensembles import anchor_penalty, gaussian_draws, mixture_log_probs

PARAMS = {"offset": np.float32(0.5), "slope": np.array([1.0, -2.0], np.float32)}


def test_gaussian_draws_are_independent_normals_around_the_parameters():
    num_members, scale = 40_000, 0.3
    draws = gaussian_draws(jax.random.key(0), PARAMS, scale, num_members)
    assert jax.tree.map(jnp.shape, draws) == {"offset": (num_members,), "slope": (num_members, 2)}
    away = jax.tree.map(lambda drawn, leaf: np.asarray(drawn) - leaf, draws, PARAMS)
    noise = np.column_stack([away["offset"], away["slope"]]) / scale
    standard_error = 1 / np.sqrt(num_members)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4.5 * standard_error)
    covariance = noise.T @ noise / num_members
    np.testing.assert_allclose(covariance, np.eye(3), atol=4.5 * np.sqrt(2) * standard_error)
    within_one = np.mean(np.abs(noise) < 1, axis=0)
    np.testing.assert_allclose(within_one, 0.682689, atol=4.5 * 0.47 * standard_error)


def test_draws_of_no_scale_are_the_parameters():
    draws = gaussian_draws(jax.random.key(0), PARAMS, 0.0, 3)
    jax.tree.map(
        lambda drawn, leaf: np.testing.assert_array_equal(drawn, np.stack([leaf] * 3)),
        draws,
        PARAMS,
    )


def test_the_penalty_is_minus_the_log_density_of_the_prior(float64):
    rng = np.random.default_rng(0)
    anchor = {"offset": np.array(0.5), "slope": rng.normal(size=(2, 3))}
    params = {"offset": np.array(0.2), "slope": rng.normal(size=(2, 3))}
    away = np.append(params["slope"] - anchor["slope"], params["offset"] - anchor["offset"])
    expected = 0.5 * np.sum((away / 1.3) ** 2)
    np.testing.assert_allclose(anchor_penalty(params, anchor, 1.3), expected, rtol=1e-14)
    assert anchor_penalty(anchor, anchor, 1.3) == 0
    check_grads(jax.jit(lambda params: anchor_penalty(params, anchor, 1.3)), (params,), order=1)


def test_the_penalty_refuses_another_tree():
    with pytest.raises(AssertionError):
        anchor_penalty(PARAMS, {"offset": PARAMS["offset"]}, 1.0)
    with pytest.raises(AssertionError):
        anchor_penalty(PARAMS, {**PARAMS, "slope": np.zeros((2, 1))}, 1.0)


def test_anchored_ensemble_of_a_linear_gaussian_model_is_its_posterior(float64):
    # The objective is quadratic, so its minimiser is an affine function of the anchor and of the
    # targets, and the covariance of the members is exact without a single draw.
    rng = np.random.default_rng(1)
    noise_scale, prior_scale = 0.6, 1.7
    inputs, targets = rng.normal(size=(7, 3)), rng.normal(size=7)
    pretrained, unravel = ravel_pytree({"offset": jnp.array(0.4), "slope": jnp.array([1.0, -2.0])})

    def objective(params, anchor, targets):
        errors = (targets - jnp.asarray(inputs) @ params) / noise_scale
        return 0.5 * jnp.sum(errors**2) + anchor_penalty(
            unravel(params), unravel(anchor), prior_scale
        )

    @jax.jit
    def minimiser(anchor, targets):
        origin = jnp.zeros(3)
        hessian = jax.hessian(objective)(origin, anchor, targets)
        return jnp.linalg.solve(hessian, -jax.grad(objective)(origin, anchor, targets))

    precision = inputs.T @ inputs / noise_scale**2 + np.eye(3) / prior_scale**2
    posterior = np.linalg.inv(precision)
    mean = posterior @ (inputs.T @ targets / noise_scale**2 + pretrained / prior_scale**2)
    np.testing.assert_allclose(minimiser(pretrained, targets), mean, rtol=1e-12)

    by_anchor, by_targets = jax.jit(jax.jacobian(minimiser, (0, 1)))(
        pretrained, jnp.asarray(targets)
    )
    from_anchors = prior_scale**2 * by_anchor @ by_anchor.T
    from_targets = noise_scale**2 * by_targets @ by_targets.T
    np.testing.assert_allclose(from_anchors + from_targets, posterior, rtol=1e-11)
    # Without noise on the targets the members are too close together in every direction.
    expected = posterior @ posterior / prior_scale**2
    np.testing.assert_allclose(from_anchors, expected, rtol=1e-11)
    assert np.all(np.linalg.eigvalsh(posterior - from_anchors) > 1e-3)


def test_the_mixture_averages_probabilities(float64):
    laws = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2))
    for axis in (0, 1):
        mixture = jax.jit(partial(mixture_log_probs, axis=axis))(np.log(laws))
        np.testing.assert_allclose(mixture, np.log(laws.mean(axis=axis)), rtol=1e-13)


def test_the_mixture_of_impossible_events_is_finite():
    log_probs = np.array([[-1e30, -1e4, 0.0], [-1e30, -2e4, -1e30]], np.float32)
    expected = [-1e30, -1e4 - np.log(2), -np.log(2)]
    np.testing.assert_allclose(jax.jit(mixture_log_probs)(log_probs), expected, rtol=1e-6)
