"""The two learners of every run, a point estimate and an ensemble, and what the first believes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.didactic import World, open_logits
from experiments.exploration.config import Config, Setting
from shatter import ensembles, exploration, losses, training
from shatter.types import Array, Comparison, Key, Metrics, Params, Query

LEARNING_RATE_RATIO = 0.05  # of a transformer's parameters to a table's logits


class State(NamedTuple):
    """The two learners, which learn from the same answers."""

    point: training.InteractionState
    members: training.InteractionState


class Learners(NamedTuple):
    """The point estimate, an ensemble of one, and the members, each with its law `[D]`."""

    point: training.Interaction
    members: training.Interaction
    point_law: Callable[[training.InteractionState], Array]  # -> [1, D]
    member_laws: Callable[[training.InteractionState], Array]  # -> [M, D]


def make_learners(setting: Setting, world: World, params: Params) -> Learners:
    """Makes the point estimate and the members.

    A table's members are anchored at draws of their prior; a transformer's have tables as prior
    functions, so that the prior is on logits of the table, the same whichever model learns.

    Args:
      setting: config and learner.
      world: the world.
      params: of the pretrained model.

    Returns:
      Both learners.
    """
    config = setting.config
    scale = config.prior_scale * config.spread
    is_table = setting.learner == "tabular"
    make = functools.partial(ensembles.anchored, start=config.start)
    if not is_table:
        make = functools.partial(ensembles.prior_functions, prior_lm=world.table)
    members = make(world.lm, params, num_members=config.num_members, prior_scale=scale)
    point = ensembles.point_estimate(world.lm, params, prior_scale=scale if is_table else 1.0)
    make_laws = functools.partial(_laws, world, is_table)
    learn = functools.partial(_learner, config, world, is_table)
    own_law, member_law = make_laws(point), make_laws(members)
    return Learners(
        learn(point, own_law),
        learn(members, member_law),
        lambda state: jax.vmap(own_law, in_axes=(None, 0))(state.shared, state.members.params),
        lambda state: jax.vmap(member_law, in_axes=(None, 0))(state.shared, state.members.params),
    )


def start(learners: Learners, key: Key) -> State:
    """Returns both learners before the first answer."""
    keys = jax.random.split(key)
    return State(learners.point.init(keys[0]), learners.members.init(keys[1]))


def learn(learners: Learners, state: State, comparisons: Comparison) -> tuple[State, Metrics]:
    """Returns both learners after new answers, and the members' metrics."""
    point, _ = learners.point.learn(state.point, comparisons)
    members, metrics = learners.members.learn(state.members, comparisons)
    return State(point, members), metrics


def posterior(
    setting: Setting, world: World, state: training.InteractionState
) -> tuple[Array, Array]:
    """Returns the Laplace approximation at a table's point estimate.

    Args:
      setting: with a tabular learner and pairs as queries.
      world: the world.
      state: of the point estimate.

    Returns:
      The Jacobian of all documents' log-probs `[D, P]` and the covariance `[P, P]`, P the logits of
      prefixes that have not ended.
    """
    config = setting.config
    params = state.members.params[0]
    used = open_logits(config.vocab_size, config.max_length)
    jacobian = jax.jacrev(world.log_probs)(params).reshape(len(world.space[0]), -1)[:, used]
    log_probs = world.log_probs(params)
    rows, store = state.store.comparisons, state.store
    items = rows.query.item_ids
    in_use = jnp.arange(items.shape[0]) < store.size
    covariance = ensembles.laplace_covariance(
        jacobian[items],
        log_probs[items],
        weights=in_use * rows.weight,
        prior_scale=config.prior_scale * config.spread,
    )
    return jacobian, covariance


def _laws(
    world: World, is_table: bool, ensemble: ensembles.Ensemble
) -> Callable[[Params, Params], Array]:
    """Returns `(shared, own_of_one) -> [D]`, a member's law."""
    if is_table:
        return lambda shared, own: world.log_probs(own)
    return lambda shared, own: world.law_of(functools.partial(ensemble.apply, shared, own))


def _learner(
    config: Config,
    world: World,
    is_table: bool,
    ensemble: ensembles.Ensemble,
    law: Callable[[Params, Params], Array],
) -> training.Interaction:
    def score(shared: Params, own: Params, responses: Query) -> Array:
        log_probs, items = law(shared, own), responses.item_ids
        # One look-up a response: the gradient of a look-up of pairs takes three times as long.
        return jnp.stack([log_probs[items[..., k]] for k in range(items.shape[-1])], axis=-1)

    # Alone it would ask at random; in a run an arm asks in its place.
    propose = training.pair_proposer(
        lambda *_: exploration.pool_candidates(*world.space),
        score,
        exploration.uniform,
        num_queries=config.queries_per_round,
        num_responses=config.num_responses or 2,
    )
    return training.interaction(
        ensemble,
        propose=propose,
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(config.learning_rate * (1.0 if is_table else LEARNING_RATE_RATIO)),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )
