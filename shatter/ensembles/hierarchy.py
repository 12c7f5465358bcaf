"""The prior of persons around a population that is learned with them."""

import jax
import jax.numpy as jnp

from shatter.ensembles.base import anchor_penalty
from shatter.types import Array, Params


def hierarchy_penalty(
    persons: Params,
    population: Params,
    anchor: Params,
    *,
    person_scale: float | Array,
    population_scale: float | Array,
) -> Array:
    """Returns minus the log density of a hierarchical Gaussian prior.

    `sum_p |theta_p - theta_0|^2 / (2 tau^2) + |theta_0 - theta|^2 / (2 sigma^2)`: the parameters of
    a person, such as adapters on a frozen base, are pulled to the population's, which are learned
    too. A person with few answers stays near the population, and one without any is at it, so a new
    person is predicted by theta_0. In a linear Gaussian model the minimum of this penalty plus half
    the squared errors is the posterior mean of all of them.

    Args:
      persons: a pytree of arrays with a leading axis P of persons, theta_p.
      population: the same pytree without the axis, theta_0.
      anchor: the same, theta: the centre of the population's own prior, such as zero adapters.
      person_scale: tau > 0, how far persons differ from the population.
      population_scale: sigma > 0, how far the population may be from the anchor.

    Returns:
      `[]`, nats.

    Example:
      >>> import jax.numpy as jnp
      >>> from shatter import ensembles
      >>> persons, zero = jnp.array([[1.0], [3.0]]), jnp.zeros(1)
      >>> penalty = ensembles.hierarchy_penalty(
      ...     persons, jnp.array([2.0]), zero, person_scale=1.0, population_scale=2.0
      ... )
      >>> float(penalty)  # (1 + 1) / 2 + 4 / 8
      1.5
    """
    of_person = lambda own: anchor_penalty(own, population, person_scale)
    around = jnp.sum(jax.vmap(of_person)(persons))
    return around + anchor_penalty(population, anchor, population_scale)
