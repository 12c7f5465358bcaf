"""The members of an ensemble learn from a store of comparisons, each with its own weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from shatter.training.step import TrainState, learner
from shatter.training.store import Store, all_comparisons, sample_comparisons
from shatter.types import MEMBER_AXIS, Array, Ensemble, Key, Metrics, Params, Query


class Members(NamedTuple):
    """The members of an ensemble and their learners.

    Attributes:
      shared: what the members hold in common and never train.
      anchors: what `ensemble.init` drew of each member, `[M]` on every leaf; its penalty pulls to
        it. Training starts at `ensemble.start` of it.
      states: their learners, `[M]` on every leaf; `states.params` are the members.
    """

    shared: Params
    anchors: Params
    states: TrainState


class MembersLearner(NamedTuple):
    """The learner of all members of an ensemble.

    Attributes:
      init: `(shared, own[M], key) -> members`, from the result of an ensemble's `init`.
      learn: `(members, store, key) -> (members, metrics)`; the metric `loss` is the mean over
        members at the last step.
    """

    init: Callable[[Params, Params, Key], Members]
    learn: Callable[[Members, Store, Key], tuple[Members, Metrics]]


def members_learner(
    ensemble: Ensemble,
    *,
    score: Callable[[Params, Params, Query], Array],
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    num_steps: int = 4,
    batch_size: int | None = None,
    regulariser: Callable[[Params, Params, Key], Array] | None = None,
    members_at_once: int | None = None,
) -> MembersLearner:
    """Returns a learner of an ensemble's members from a loss and an optimiser.

    In every call of `learn`, member m takes `num_steps` steps of the optimiser on

        (1 / n) (sum_i w_mi weight_i loss_i(theta) + penalty(theta, theta_m) + D(theta)),

    n the number of comparisons in the store, w_mi its own observation weights.

    Args:
      ensemble: the ensemble.
      score: `(shared, own_of_one, query) -> log_probs[..., K]`, one member's utility of each
        response, nats, for queries with any leading axes.
      loss: `(response_log_probs[..., K], ranks[..., K]) -> [...]`, for example
        `shatter.losses.ilhf_ranking_loss`.
      optimizer: an optax optimiser; every member has its own state.
      num_steps: steps of the optimiser a call.
      batch_size: comparisons a step, drawn from the store; None = all of them.
      regulariser: `(shared, own_of_one, key) -> []`, lambda D, for the data set; none if None.
      members_at_once: how many members are vmapped, batch after batch; None = all. Few take less
        memory, and less time where one member keeps a CPU busy. Not for ensembles whose members
        combine their gradients.

    Returns:
      `init` and `learn`; the store must hold at least one comparison.
    """

    def objective(own: Params, frozen: Any, key: Key, batch: Any) -> tuple[Array, Metrics]:
        shared, anchor, comparisons, num_observed = frozen
        weights, fraction = batch
        log_probs = score(shared, own, comparisons.query)
        losses = weights * comparisons.weight * loss(log_probs, comparisons.ranks)
        total = jnp.sum(losses) / fraction + ensemble.penalty(own, anchor)
        if regulariser is not None:
            total += regulariser(shared, own, key)
        return total / num_observed, {}

    def update(gradient: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        return optimizer.update(ensemble.combine_gradients(gradient), state, params)

    member = learner(objective, optax.GradientTransformation(optimizer.init, update))

    def init(shared: Params, own: Params, key: Key) -> Members:
        num_members = jax.tree.leaves(own)[0].shape[0]
        starts = jax.vmap(ensemble.start)(own)
        states = jax.vmap(member.init)(starts, jax.random.split(key, num_members))
        return Members(shared, own, states)

    def learn(members: Members, store: Store, key: Key) -> tuple[Members, Metrics]:
        shared, anchors, states = members
        num_observed = jnp.minimum(store.size, store.member_weights.shape[1])
        everything = all_comparisons(store)

        def step(states: TrainState, t: Array) -> tuple[TrainState, Metrics]:
            if batch_size is None:
                (rows, own_weights), fraction = everything, jnp.ones(())
            else:
                rows, own_weights = sample_comparisons(
                    store, jax.random.fold_in(key, t), batch_size
                )
                fraction = batch_size / num_observed

            def one(
                state: TrainState, anchor: Params, weights: Array
            ) -> tuple[TrainState, Metrics]:
                frozen = (shared, anchor, rows, num_observed)
                return member.step(state, frozen, (weights, fraction))

            each = (states, anchors, own_weights)
            if members_at_once is None:
                return jax.vmap(one, axis_name=MEMBER_AXIS)(*each)
            return jax.lax.map(lambda parts: one(*parts), each, batch_size=members_at_once)

        states, metrics = jax.lax.scan(step, states, jnp.arange(num_steps))
        return Members(shared, anchors, states), {"loss": jnp.mean(metrics["loss"][-1])}

    return MembersLearner(init, learn)
