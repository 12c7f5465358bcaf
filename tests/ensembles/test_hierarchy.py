"""The hierarchical prior against the closed form of the Gaussian hierarchical model, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import ensembles


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "sigma"), [(0.5, 2.0), (3.0, 0.7)])
def test_the_minimum_is_the_posterior_mean(tau: float, sigma: float):
    """The posterior by marginals: the population first, with persons integrated out, then each."""
    rng = np.random.default_rng(0)
    numbers, size, anchor = [0, 1, 6], 2, np.array([0.4, -1.0])
    x = [rng.normal(size=(number, size)) for number in numbers]
    y = [rng.normal(size=number) for number in numbers]
    precision, weighted = np.eye(size) / sigma**2, anchor / sigma**2
    for a, b in zip(x, y, strict=True):
        marginal = np.linalg.inv(np.eye(len(b)) + tau**2 * a @ a.T)
        precision, weighted = precision + a.T @ marginal @ a, weighted + a.T @ marginal @ b
    population = np.linalg.solve(precision, weighted)
    of_person = [
        np.linalg.solve(a.T @ a + np.eye(size) / tau**2, a.T @ b + population / tau**2)
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(of_person[0], population)  # a person without answers

    def loss(params):
        persons, centre = params
        pairs = enumerate(zip(x, y, strict=True))
        errors = [0.5 * jnp.sum((b - a @ persons[p]) ** 2) for p, (a, b) in pairs]
        return sum(errors) + ensembles.hierarchy_penalty(
            {"b": persons}, {"b": centre}, {"b": anchor}, person_scale=tau, population_scale=sigma
        )

    with jax.enable_x64(True):
        at = (jnp.array(of_person), jnp.array(population))
        for slope in jax.tree.leaves(jax.grad(loss)(at)):
            np.testing.assert_allclose(slope, 0, atol=1e-10)
        # The loss is quadratic with its minimum there: Newton's step from elsewhere ends there too.
        start, rebuild = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.ones_like, at))
        flat = lambda values: loss(rebuild(values))
        step = jnp.linalg.solve(jax.hessian(flat)(start), jax.grad(flat)(start))
        np.testing.assert_allclose(rebuild(start - step)[0], at[0], rtol=1e-8)


def test_persons_without_a_hierarchy_and_without_differences():
    persons, centre, anchor = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.ones(2), jnp.zeros(2)
    penalty = lambda tau: ensembles.hierarchy_penalty(
        persons, centre, anchor, person_scale=tau, population_scale=2.0
    )
    of_population = ensembles.anchor_penalty(centre, anchor, 2.0)
    np.testing.assert_allclose(penalty(1e6), of_population, rtol=1e-6)
    each = [ensembles.anchor_penalty(own, centre, 0.5) for own in persons]
    np.testing.assert_allclose(penalty(0.5), of_population + sum(each), rtol=1e-6)
