"""The pipeline: a reward model that learns from answers, a policy that learns from it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.online.arms import Arm, Learner, Speaker, chooser
from experiments.online.members import (
    make_candidates,
    make_one,
    member_logits,
    member_samples,
    propose,
    without_hidden,
)
from experiments.online.world import Fixed, Read, World, read, response_log_probs
from shatter import ensembles, exploration, losses, training
from shatter.types import Array, Comparison, Key, Metrics, Params


class State(NamedTuple):
    """What a pipeline carries from round to round.

    Attributes:
      rewards: the point head and its particles, with all answers so far.
      policy: the policy, adapters on the base.
      start: the adapters that it starts with, which change nothing.
      anchor: the moving average of the policy's parameters.
    """

    rewards: training.InteractionState
    policy: training.TrainState
    start: Params
    anchor: Params


class Parts(NamedTuple):
    """What the halves of a pipeline share.

    Attributes:
      world: the world.
      fixed: its arrays.
      arm: the arm.
      heads: the point head and its particles.
      policy: learns the policy, from `(anchor, point head)`.
    """

    world: World
    fixed: Fixed
    arm: Arm
    heads: ensembles.Ensemble
    policy: training.Learner


def two_models(world: World, fixed: Fixed, arm: Arm) -> Learner:
    """Returns the learner of an arm of the pipeline; its state is a `State`.

    The reward model is `ensembles.prior_heads` on the features of the frozen base; the policy has
    adapters where ILHF's members have them.
    """
    config = world.config
    has_particles = arm.explore is not exploration.uniform
    heads = ensembles.prior_heads(
        fixed.centre.shape[0],
        num_members=1 + (config.num_particles if has_particles else 0),
        prior_scale=config.reward_scale,
        hidden=config.hidden,
        prior_hidden=config.hidden,
    )
    objective = partial(_policy_objective, world, fixed, heads)
    policy = training.learner(objective, optax.adam(config.policy_rate))
    parts = Parts(world, fixed, arm, heads, policy)
    interaction = training.Interaction(
        partial(_init, parts),
        lambda state, key: _rewards(parts, state.policy.params).propose(state.rewards, key),
        partial(_learn, parts),
    )
    return Learner(interaction, partial(_speaker, parts))


def _rewards(parts: Parts, policy: Params) -> training.Interaction:
    """Returns what asks and learns the reward model while a policy writes the responses."""
    world, fixed, arm, heads, _ = parts
    config = world.config
    sources = make_candidates(world, fixed.params, arm.candidates, arm.temperature)
    candidates = lambda key, prompt_id: sources(key, _as_members(policy), prompt_id)
    of_all = jax.vmap(partial(heads.apply, ()), in_axes=(0, None))

    def ask(key: Key, shared: Params, own: Params, store: training.Store) -> Read:
        del shared, store
        voters = jax.tree.map(lambda leaf: leaf[min(1, len(leaf) - 1) :], own)  # not their point
        values = lambda known: of_all(voters, known.features)
        asked = propose(world, fixed, candidates, values, chooser(arm, is_tilt=False), key)
        return without_hidden(asked)

    return training.interaction(
        heads,
        propose=ask,  # type: ignore[arg-type]  # a `Read` is kept in the place of a `Query`
        score=lambda shared, own, known: heads.apply(shared, own, known.features),  # type: ignore[attr-defined]
        loss=losses.reward_model_ranking_loss,
        optimizer=optax.adam(config.reward_rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )


def _init(parts: Parts, key: Key) -> State:
    """Returns the start: rewards of 0, and a policy that is the base."""
    own_key, policy_key, reward_key = jax.random.split(key, 3)
    one = make_one(parts.world, parts.fixed.params, jnp.ones(()))
    own = jax.tree.map(lambda leaf: leaf[0], one.init(own_key)[1])
    rewards = _rewards(parts, own).init(reward_key)
    return State(rewards, parts.policy.init(own, policy_key), own, own)


def _learn(parts: Parts, state: State, answers: Comparison) -> tuple[State, Metrics]:
    """Learns the reward model, then the policy: a few steps, or anew at the end of a period."""
    config = parts.world.config
    rewards, metrics = _rewards(parts, state.policy.params).learn(state.rewards, answers)
    state = state._replace(rewards=rewards)
    if not parts.arm.retrained:
        return _train(parts, state, jnp.asarray(config.policy_steps)), metrics

    # Not a `cond`, which takes both ways where seeds are vmapped: no steps where none are due.
    is_due = rewards.step % config.period == 0
    now = (state.policy.params, state.policy.opt_state, state.anchor)
    fresh = parts.policy.init(state.start, state.policy.key)
    start = (fresh.params, fresh.opt_state, state.start)
    params, opt_state, anchor = jax.tree.map(partial(jnp.where, is_due), start, now)
    policy = state.policy._replace(params=params, opt_state=opt_state)
    num_steps = jnp.where(is_due, rewards.step * config.policy_steps, 0)
    return _train(parts, state._replace(policy=policy, anchor=anchor), num_steps), metrics


def _train(parts: Parts, state: State, num_steps: Array) -> State:
    """Returns the state after steps of the policy."""
    decay = parts.world.config.anchor_decay
    point = jax.tree.map(lambda leaf: leaf[0], state.rewards.members.params)

    def step(_: int, carry: tuple[training.TrainState, Params]) -> tuple:
        policy, anchor = carry
        policy = parts.policy.step(policy, (anchor, point), None)[0]
        return policy, optax.incremental_update(policy.params, anchor, 1.0 - decay)

    policy, anchor = jax.lax.fori_loop(0, num_steps, step, (state.policy, state.anchor))
    return state._replace(policy=policy, anchor=anchor)


def _policy_objective(
    world: World,
    fixed: Fixed,
    heads: ensembles.Ensemble,
    own: Params,
    frozen: tuple[Params, Params],
    key: Key,
    batch: None,
) -> tuple[Array, Metrics]:
    """Returns the mean loss of both responses of fresh pairs of samples of the policy."""
    del batch
    anchor, point = frozen
    config = world.config
    now = jax.lax.stop_gradient(own)
    drawn = member_samples(world, fixed.params, _as_members(now), key, 2 * config.policy_batch)
    known = read(world, fixed, drawn)
    logits = member_logits(world, fixed.params, own, known)
    of_anchor = member_logits(world, fixed.params, anchor, known)
    said = known.mask[..., -logits.shape[-2] :]
    rewards = heads.apply((), point, known.features)
    these, others = jnp.split(rewards, 2, axis=-1)
    wins = jax.nn.sigmoid(these - others)
    loss = losses.nudged_reinforce_loss(
        response_log_probs(world, logits, known.tokens, known.mask),
        jnp.concatenate([wins, 1.0 - wins], axis=-1),
        losses.forward_kl_loss(of_anchor, logits, said),
        beta=config.beta,
        nudge=config.nudge,
    )
    return jnp.mean(loss), {}


def _speaker(parts: Parts, state: State) -> Speaker:
    point = jax.tree.map(lambda leaf: leaf[:1], state.rewards.members.params)
    of_point = jax.vmap(partial(parts.heads.apply, ()), in_axes=(0, None))
    return Speaker(
        _as_members(state.policy.params),
        lambda known: of_point(point, known.features),
        state.rewards.step,
    )


def _as_members(own: Params) -> Params:
    """Returns a policy as an ensemble of one."""
    return jax.tree.map(lambda leaf: leaf[None], own)
