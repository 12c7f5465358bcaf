"""The pipeline: a reward model that learns from answers, a policy that learns from it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World
from experiments.pipeline import world as of_world
from experiments.pipeline.algorithms import Algorithm
from experiments.pipeline.config import Config, Setting
from experiments.pipeline.measures import measure
from experiments.pipeline.world import Problem
from shatter import ensembles, losses, training
from shatter.types import Array, Key, Metrics, Params, Query


class State(NamedTuple):
    """What one seed carries from round to round.

    Attributes:
      problem: what the seed drew once.
      rewards: the point head and its particles, with all answers so far.
      policy: the policy.
      anchor: the moving average of the policy's parameters.
      key: the source of all draws, by the number of the round.
    """

    problem: Problem
    rewards: training.InteractionState
    policy: training.TrainState
    anchor: Params
    key: Key


class Plan(NamedTuple):
    """What all seeds share.

    Attributes:
      setting: config and kind of policy.
      algorithm: the algorithm.
      world: documents and models.
      ensemble: the point head and its particles.
      features: `[D, F]`, of all documents.
      policy: learns the policy, from `(anchor, rewards[D])`.
    """

    setting: Setting
    algorithm: Algorithm
    world: World
    ensemble: ensembles.Ensemble
    features: Array
    policy: training.Learner


def pipeline_process(setting: Setting, algorithm: Algorithm) -> Process:
    """Returns the run of one seed of a pipeline; its input is a key."""
    plan = _make_plan(setting, algorithm)

    def rounds(state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
        numbers = first_round + jnp.arange(chunk.num_rounds)
        return jax.lax.scan(partial(_one_round, plan), state, numbers)

    return Process(partial(_start, plan), rounds)


def _make_plan(setting: Setting, algorithm: Algorithm) -> Plan:
    config, world = setting.config, of_world.world_of(setting)
    features = jnp.asarray(of_world.document_features(world, config.vocab_size, config.max_length))
    num_particles = config.num_particles if algorithm.arm == "selection" else 0
    ensemble = ensembles.prior_heads(
        features.shape[1],
        num_members=1 + num_particles,
        prior_scale=config.prior_scale * config.spread,
        hidden=config.hidden,
        prior_hidden=config.hidden,
    )
    rate = config.policy_rate * of_world.TABLE_RATE[setting.learner]
    policy = training.learner(partial(_policy_objective, setting, world), optax.adam(rate))
    return Plan(setting, algorithm, world, ensemble, features, policy)


def _rewards(plan: Plan, law: Array) -> training.Interaction:
    """Returns what asks and learns the reward model while a law `[D]` writes the responses."""
    config = plan.setting.config

    def score(shared: Params, own: Params, responses: Query) -> Array:
        return of_world.values_of(responses, plan.ensemble.apply(shared, own, plan.features))

    def propose(key: Key, shared: Params, own: Params, store: training.Store) -> Query:
        del store
        return _ask(plan, law, _scores(plan, shared, own), key)

    return training.interaction(
        plan.ensemble,
        propose=propose,
        score=score,
        loss=losses.reward_model_ranking_loss,
        optimizer=optax.adam(config.reward_rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )


def _policy_objective(
    setting: Setting,
    world: World,
    params: Params,
    frozen: tuple[Params, Array],
    key: Key,
    batch: None,
) -> tuple[Array, Metrics]:
    """Returns the mean loss of both responses of fresh pairs of samples of the policy."""
    del batch
    anchor, rewards = frozen
    config = setting.config
    log_probs = world.log_probs(params)
    kls = of_world.anchor_kls(world, setting, anchor, params)
    law = jax.lax.stop_gradient(log_probs)
    these, others = jax.random.categorical(key, law, shape=(2, config.policy_batch))
    wins = jax.nn.sigmoid(rewards[these] - rewards[others])
    shown = jnp.concatenate([these, others])
    loss = losses.nudged_reinforce_loss(
        log_probs[shown],
        jnp.concatenate([wins, 1.0 - wins]),
        kls[shown],
        beta=config.beta,
        nudge=config.nudge,
    )
    return jnp.mean(loss), {}


def _start(plan: Plan, key: Key) -> tuple[State, Metrics]:
    problem_key, reward_key, policy_key, run_key = jax.random.split(key, 4)
    problem = of_world.draw_problem(problem_key, plan.setting, plan.world)
    policy = plan.policy.init(problem.params, policy_key)
    rewards = _rewards(plan, problem.log_p0).init(reward_key)
    state = State(problem, rewards, policy, problem.params, run_key)
    return state, _report(plan, state)


def _one_round(plan: Plan, state: State, number: Array) -> tuple[State, Metrics]:
    """Asks, learns the reward model, then the policy: a few steps, or anew at a period's end."""
    config = plan.setting.config
    ask_key, answer_key = jax.random.split(jax.random.fold_in(state.key, number))
    is_start = plan.algorithm.responses == "pretrained"
    law = state.problem.log_p0 if is_start else plan.world.log_probs(state.policy.params)
    rewards = _rewards(plan, law)
    queries = rewards.propose(state.rewards, ask_key)
    answers = training.ask(of_world.rater_of(state.problem), answer_key, queries)
    state = state._replace(rewards=rewards.learn(state.rewards, answers)[0])
    if plan.algorithm.retrained:
        is_due = (number + 1) % config.period == 0
        state = jax.lax.cond(is_due, partial(_retrain, plan), lambda state: state, state)
    else:
        state = _train_policy(plan, state, config.policy_steps)
    return state, _report(plan, state)


def _ask(plan: Plan, law: Array, scores: Array, key: Key) -> Query:
    """Returns the queries of a round, about responses of a law `[D]`."""
    config, algorithm = plan.setting.config, plan.algorithm
    candidate_key, choice_key = jax.random.split(key)
    pools = of_world.draw_candidates(candidate_key, config, algorithm, law, plan.world.space)
    arm: str = config.selection if algorithm.arm == "selection" else algorithm.arm
    voters = scores if len(scores) == 1 else scores[1:]  # particles apart from their point
    chosen = of_world.choose_pairs(choice_key, arm, pools, voters, None)
    return jax.vmap(training.take_responses)(pools, chosen)


def _retrain(plan: Plan, state: State) -> State:
    """Returns the state with a policy that was trained anew, as long as all rounds of online."""
    config, params = plan.setting.config, state.problem.params
    fresh = plan.policy.init(params, jax.random.fold_in(state.policy.key, state.policy.step))
    state = state._replace(policy=fresh, anchor=params)
    return _train_policy(plan, state, config.num_rounds * config.policy_steps)


def _train_policy(plan: Plan, state: State, num_steps: int) -> State:
    rewards = _scores(plan, state.rewards.shared, state.rewards.members.params)[0]

    def step(carry: tuple[training.TrainState, Params], _: None) -> tuple[tuple, None]:
        policy, anchor = carry
        policy = plan.policy.step(policy, (anchor, rewards), None)[0]
        decay = plan.setting.config.anchor_decay
        return (policy, optax.incremental_update(policy.params, anchor, 1.0 - decay)), None

    (policy, anchor), _ = jax.lax.scan(step, (state.policy, state.anchor), length=num_steps)
    return state._replace(policy=policy, anchor=anchor)


def _scores(plan: Plan, shared: Params, own: Params) -> Array:
    """Returns the reward of every document, `[1 + particles, D]`, the point head's first."""
    return jax.vmap(plan.ensemble.apply, in_axes=(None, 0, None))(shared, own, plan.features)


def _report(plan: Plan, state: State) -> Metrics:
    config: Config = plan.setting.config
    return measure(
        state.problem,
        plan.world.space,
        plan.world.log_probs(state.policy.params),
        _scores(plan, state.rewards.shared, state.rewards.members.params)[0],
        vocab_size=config.vocab_size,
        beta=config.readout_beta,
    )
