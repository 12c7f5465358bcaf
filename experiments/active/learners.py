"""What learns from the votes: an ensemble, or a linear utility by Laplace's approximation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.active.config import Setting
from experiments.active.design import LinearBelief
from shatter import choice, ensembles, models, training
from shatter.cli.common import learners
from shatter.cli.common.frozen import Table
from shatter.training import Interaction, InteractionState, TrainState
from shatter.types import Array, Comparison, Key, Metrics, Params, Query, item_query

NUM_NODES = 32  # of the quadrature over a Gaussian log-odds


class Learner(NamedTuple):
    """How a learner learns, judges texts and predicts choices; `shared` is `(own, table)`.

    Attributes:
      interaction: `(table, propose, *, query, capacity) -> interaction`.
      utilities: `(shared, own, items[...]) -> [M, ...]`, the members' utilities, nats.
      belief: `(shared, own, items[Q, 2])`, what V-optimal design sees: a `LinearBelief`, or the
        members' utilities `[M, Q, 2]`.
      choices: `(shared, own, pairs[P, 2]) -> [P, 2]`, the predicted log-probs of both texts.
    """

    interaction: Callable[..., Interaction]
    utilities: Callable[[Any, Params, Array], Array]
    belief: Callable[[Any, Params, Array], Array | LinearBelief]
    choices: Callable[[Any, Params, Array], Array]


class Posterior(NamedTuple):
    """What the Laplace learner believes.

    Attributes:
      mean: `[P]`.
      covariance: `[P, P]`.
      members: `[M, P]`, drawn from the belief, for arms that need members.
    """

    mean: Array
    covariance: Array
    members: Array


def make_learner(
    setting: Setting,
    transformer: models.TransformerConfig | None,
    base: Params,
    *,
    num_features: int,
    prior_scale: float | Array,
) -> Learner:
    """Returns the learner of a setting.

    Args:
      setting: what learns.
      transformer: adapters: the config of the frozen model.
      base: adapters: the parameters above the table's hidden states.
      num_features: width of the features, where there are some.
      prior_scale: the standard deviation of a utility before there is data, nats; of adapters, the
        scale of their parameters.
    """
    if setting.kind == "laplace":
        return laplace_learner(
            num_features,
            num_members=setting.num_members,
            prior_scale=prior_scale,
            num_steps=setting.num_steps,
        )
    made = learners.make_learner(
        setting.learner, transformer, base, num_features=num_features, prior_scale=prior_scale
    )

    def choices(shared: Any, own: Params, pairs: Array) -> Array:
        utilities = made.utilities(shared, own, pairs)
        return ensembles.mixture_log_probs(choice.luce_log_probs(utilities))

    return Learner(made.interaction, made.utilities, made.utilities, choices)


def laplace_learner(
    num_features: int, *, num_members: int, prior_scale: float | Array, num_steps: int
) -> Learner:
    """Returns the learner of `u(x) = theta . x / sqrt(P)`, theta ~ N(0, c^2 I), by Laplace.

    After every round its belief is `shatter.ensembles.fit_laplace` on all answers, in which a vote
    for neither is half a vote for each. It predicts a choice by the integral over the log-odds.

    Args:
      num_features: P, of features of mean square 1, `table["features"]`.
      num_members: M, drawn from the belief after every round.
      prior_scale: c, nats.
      num_steps: Newton's steps a round, from the belief before.

    Returns:
      The learner.
    """

    def interaction(
        table: Table, propose: training.Propose, *, query: Query, capacity: int
    ) -> Interaction:
        start = ensembles.Laplace(jnp.zeros(num_features), prior_scale**2 * jnp.eye(num_features))
        return Interaction(
            init=lambda key: _start(table, query, capacity, start, num_members, key),
            propose=lambda state, key: propose(
                key, state.shared, state.members.params, state.store
            ),
            learn=functools.partial(_learn, prior_scale=prior_scale, num_steps=num_steps),
        )

    return Learner(interaction, _utilities, _belief, _choices)


def blank_query() -> Query:
    """Returns a query of two texts, by which stores are laid out."""
    return item_query(jnp.zeros(2, int))


def shares(ranks: Array) -> Array:
    """Returns the shares `[..., 2]` of a choice given by ranks; a tie is half for each."""
    best = ranks == jnp.min(ranks, axis=-1, keepdims=True)
    return best / jnp.sum(best, axis=-1, keepdims=True)


def integrated_choices(means: Array, variances: Array) -> Array:
    """Returns the log-probs of both choices of pairs whose log-odds are Gaussian.

    Args:
      means: `[P]`, of the log-odds of the first.
      variances: `[P]`.

    Returns:
      `[P, 2]`, nats: `log E sigmoid(d)` and `log E sigmoid(-d)`, by Gauss-Hermite quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    log_weights = jnp.asarray(np.log(weights / weights.sum()), means.dtype)
    odds = means[:, None] + jnp.sqrt(variances)[:, None] * jnp.asarray(nodes, means.dtype)[None]
    both = jnp.stack([jax.nn.log_sigmoid(odds), jax.nn.log_sigmoid(-odds)], axis=1)
    return jax.nn.logsumexp(both + log_weights[None, None], axis=-1)


def _start(
    table: Table,
    query: Query,
    capacity: int,
    prior: ensembles.Laplace,
    num_members: int,
    key: Key,
) -> InteractionState:
    """Returns the state before there are answers, with room for `capacity` of them."""
    member_key, state_key = jax.random.split(key)
    own = _posterior(member_key, prior, num_members)
    blank = Comparison(query, jnp.zeros(query.valid.shape, int), jnp.zeros(()))
    store = training.empty_store(blank, num_members=1, capacity=capacity)
    members = TrainState(own, (), member_key, jnp.zeros((), int))
    return InteractionState(((), table), (), members, store, state_key, jnp.zeros((), int))


def _learn(
    state: InteractionState,
    comparisons: Comparison,
    keys: tuple[Key, Key],
    *,
    prior_scale: float | Array,
    num_steps: int,
) -> tuple[InteractionState, Metrics]:
    """Returns the state whose belief is fitted to all answers so far."""
    alike = jnp.ones((1, len(comparisons.weight)))
    store = training.add_comparisons(state.store, comparisons, alike)
    known, own = store.comparisons, state.members.params
    fit = ensembles.fit_laplace(
        _rows(state.shared, known.query.item_ids),
        shares(known.ranks),
        weights=known.weight,
        prior_scale=prior_scale,
        start=own.mean,
        num_steps=num_steps,
    )
    members = state.members._replace(params=_posterior(keys[0], fit, len(own.members)))
    return state._replace(members=members, store=store, step=state.step + 1), {}


def _posterior(key: Key, fit: ensembles.Laplace, num_members: int) -> Posterior:
    return Posterior(*fit, ensembles.draw_members(key, *fit, num_members))


def _rows(shared: Any, items: Array) -> Array:
    """Returns the features `[..., P]` of texts, scaled to mean square 1 / P."""
    features = shared[1]["features"]
    return features[items] / features.shape[-1] ** 0.5


def _utilities(shared: Any, own: Posterior, items: Array) -> Array:
    return jnp.moveaxis(_rows(shared, items) @ own.members.T, -1, 0)


def _belief(shared: Any, own: Posterior, items: Array) -> LinearBelief:
    features = _rows(shared, items)
    return LinearBelief(features @ own.mean, features, own.covariance)


def _choices(shared: Any, own: Posterior, pairs: Array) -> Array:
    features = _rows(shared, pairs)
    gaps = features[:, 0] - features[:, 1]
    variances = jnp.einsum("xp,pq,xq->x", gaps, own.covariance, gaps)
    return integrated_choices(gaps @ own.mean, jnp.maximum(variances, 0.0))
