"""Parameters of a population, its groups and its persons, learned together under one prior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from shatter.types import Array, Params


class Levels(NamedTuple):
    """Parameters of three levels, the same pytree each.

    Attributes:
      population: theta_0, without a further axis.
      groups: theta_g, with a leading axis G.
      persons: theta_p, with a leading axis P.
    """

    population: Params
    groups: Params
    persons: Params


class Scales(NamedTuple):
    """Standard deviations of the prior, in the unit of the parameters.

    Attributes:
      population: sigma, of the population around the anchor.
      group: of groups around the population.
      person: tau, of persons around their group, or around the population if it is unknown.
    """

    population: Any
    group: Any
    person: Any


def stacked(levels: Levels) -> Params:
    """Returns the parameters `[1 + G + P]` of the population, the groups and the persons."""
    join = lambda one, groups, persons: jnp.concatenate([one[None], groups, persons])
    return jax.tree.map(join, *levels)


def at_anchor(anchor: Params, num_groups: int) -> Levels:
    """Returns a population and groups that are all at the anchor, and no persons."""
    repeat = lambda number: jax.tree.map(lambda x: jnp.repeat(x[None], number, axis=0), anchor)
    return Levels(anchor, repeat(num_groups), repeat(0))


def placed(offsets: Levels, anchor: Params, person_groups: Array, scales: Scales) -> Levels:
    """Returns the levels that are at given offsets from each other.

    Args:
      offsets: `(theta_0 - anchor) / sigma`, `(theta_g - theta_0) / sigma_g` and
        `(theta_p - theta_g) / tau`. Half their square is minus the log density of the prior of
        three levels, that of `shatter.ensembles.hierarchy_penalty` and
        `sum_p |theta_p - theta_g(p)|^2 / (2 tau^2)` (ours: the source has two levels).
      anchor: the centre of the population's prior.
      person_groups: int `[P]`, from 1; 0 = no group is known.
      scales: of the prior.

    Returns:
      The levels.
    """
    around = lambda centre, own, scale: jax.tree.map(
        lambda c, z: jnp.broadcast_to(c, z.shape) + scale * z, centre, own
    )
    population = around(anchor, offsets.population, scales.population)
    lifted = jax.tree.map(lambda leaf: leaf[None], population)
    groups = around(lifted, offsets.groups, scales.group)
    centres = jax.tree.map(lambda *parts: jnp.concatenate(parts)[person_groups], lifted, groups)
    return Levels(population, groups, around(centres, offsets.persons, scales.person))


def fit(
    loss: Callable[[Params], Array],
    anchor: Params,
    person_groups: Array,
    scales: Scales,
    start: Levels,
    *,
    num_steps: int,
) -> Levels:
    """Minimises the loss of all answers and the penalty over all levels jointly, by L-BFGS.

    It works on the offsets of `placed`, in which the penalty is half a square: one that no answer
    moves stays where it was, so a person without answers is at the group exactly.

    Args:
      loss: `(stacked[1 + G + P]) -> []`, of `stacked` levels, nats.
      anchor: the centre of the population's prior.
      person_groups: int `[P]`, from 1; 0 = no group is known.
      scales: of the prior, each above 0.
      start: where the population and the groups start; persons start at their groups.
      num_steps: of L-BFGS.

    Returns:
      The levels of the minimum.
    """

    def objective(offsets: Levels) -> Array:
        levels = placed(offsets, anchor, person_groups, scales)
        return loss(stacked(levels)) + 0.5 * optax.tree.norm(offsets, squared=True)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        offsets, state = carry
        value, grad = value_and_grad(offsets, state=state)
        updates, state = solver.update(
            grad, state, offsets, value=value, grad=grad, value_fn=objective
        )
        return (optax.apply_updates(offsets, updates), state), None

    apart = lambda own, centre, scale: jax.tree.map(
        lambda z, c: (z - jnp.broadcast_to(c, z.shape)) / scale, own, centre
    )
    lifted = jax.tree.map(lambda leaf: leaf[None], start.population)
    of_persons = lambda leaf: jnp.zeros((len(person_groups), *leaf.shape), leaf.dtype)
    offsets = Levels(
        apart(start.population, anchor, scales.population),
        apart(start.groups, lifted, scales.group),
        jax.tree.map(of_persons, anchor),
    )
    (offsets, _), _ = jax.lax.scan(step, (offsets, solver.init(offsets)), length=num_steps)
    return placed(offsets, anchor, person_groups, scales)
