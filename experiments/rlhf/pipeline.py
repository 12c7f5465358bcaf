"""The run of a pipeline: first a reward model, then PPO or the exact posterior.

Where a policy is trained, the first half of the rounds trains the reward model.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.chunks import Chunk, Process
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, Problem
from experiments.rlhf.measures import measure, over_optimisation
from experiments.rlhf.objectives import Objective, Pipeline
from experiments.rlhf.optimizers import make_optimizer, make_policy_optimizer
from experiments.rlhf.rollouts import PPO_EPOCHS, Rollout, policy_loss, reward_loss, roll_out
from shatter import evaluation, losses, training
from shatter.types import Array, Key, Metrics, Params

CURVE_BETAS = (10.0, 0.01, 40)  # of the over-optimisation curves: first, last, number
ADAPTIVE_HORIZON = 2000.0  # documents over which the adaptive beta may change by a fifth


class ActorCritic(NamedTuple):
    """The parameters of the policy, and the value `[P]` of every prompt."""

    policy: Params
    values: Array


class State(NamedTuple):
    """What one seed carries from round to round.

    Attributes:
      problem: what the seed drew once.
      beta: `[]`, KL coefficient.
      rewards: the reward model `[P, D]` in training.
      policy: the policy and its values in training.
    """

    problem: Problem
    beta: Array
    rewards: training.TrainState
    policy: training.TrainState


class Plan(NamedTuple):
    """What all seeds share.

    Attributes:
      config: the config.
      domain: what is compared.
      objective: the objective.
      pipeline: its training.
      reward_rounds: number of rounds that train the reward model.
      reward_learner: trains the reward model.
      policy_learner: trains the policy.
    """

    config: Config
    domain: Domain
    objective: Objective
    pipeline: Pipeline
    reward_rounds: int
    reward_learner: training.Learner
    policy_learner: training.Learner


def pipeline_process(
    config: Config, domain: Domain, objective: Objective, pipeline: Pipeline
) -> Process:
    """Returns the run of one seed of a pipeline.

    Args:
      config: the config.
      domain: what is compared.
      objective: the objective.
      pipeline: its training.

    Returns:
      `start` and `rounds`, as in `process.make_process`.
    """
    plan = _make_plan(config, domain, objective, pipeline)

    def rounds(state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
        round_numbers = first_round + jnp.arange(chunk.num_rounds)
        return jax.lax.scan(partial(_one_round, plan), state, round_numbers)

    return Process(partial(_start, plan), rounds)


def _make_plan(config: Config, domain: Domain, objective: Objective, pipeline: Pipeline) -> Plan:
    num_comparisons = max(int(pipeline.share * config.num_comparisons), 1)
    num_rounds = config.num_steps // config.record_every
    reward_rounds = num_rounds // 2 if pipeline.trains_policy else num_rounds
    policy_steps = (num_rounds - reward_rounds) * config.record_every + 1

    def fit_rewards(
        rewards: Array, problem: Problem, key: Key, batch: None
    ) -> tuple[Array, Metrics]:
        del batch
        indices = jax.random.randint(key, (config.batch_size,), 0, num_comparisons)
        return reward_loss(problem, rewards, indices), {}

    def fit_policy(
        trainable: ActorCritic, frozen: None, key: Key, rollout: Rollout
    ) -> tuple[Array, Metrics]:
        del frozen, key
        return policy_loss(domain.log_probs(trainable.policy), trainable.values, rollout), {}

    return Plan(
        config,
        domain,
        objective,
        pipeline,
        reward_rounds,
        training.learner(fit_rewards, make_optimizer(config, reward_rounds * config.record_every)),
        training.learner(fit_policy, make_policy_optimizer(config, policy_steps)),
    )


def _start(plan: Plan, inputs: tuple[Any, Key, Array]) -> tuple[State, Metrics]:
    drawn, key, beta = inputs
    problem = plan.domain.draw(drawn)
    reward_key, policy_key = jax.random.split(key)
    trainable = ActorCritic(problem.params, jnp.zeros(len(problem.log_p0)))
    state = State(
        problem,
        beta,
        plan.reward_learner.init(jnp.zeros_like(problem.log_p0), reward_key),
        plan.policy_learner.init(trainable, policy_key),
    )
    return state, _report(plan, state)


def _one_round(plan: Plan, state: State, round_number: Array) -> tuple[State, Metrics]:
    if plan.pipeline.trains_policy:
        is_reward = round_number < plan.reward_rounds
        train = (partial(_train_rewards, plan), partial(_train_policy, plan))
        state = jax.lax.cond(is_reward, *train, state)
    else:
        state = _train_rewards(plan, state)
    return state, _report(plan, state)


def _report(plan: Plan, state: State) -> Metrics:
    """Returns the measures of the policy, or of the exact posterior and its over-optimisation."""
    problem, beta = state.problem, state.beta
    if plan.pipeline.trains_policy:
        log_probs = plan.domain.log_probs(state.policy.params.policy)
        metrics = measure(plan.domain, plan.objective, problem, log_probs, beta)
        return metrics | {"beta": beta} if plan.pipeline.is_adaptive else metrics
    rewards = state.rewards.params
    log_probs, _ = evaluation.posterior_optimum(problem.log_p0, rewards, beta=beta)
    curves = over_optimisation(problem, rewards, jnp.geomspace(*CURVE_BETAS))
    return measure(plan.domain, plan.objective, problem, log_probs, beta) | curves


def _train_rewards(plan: Plan, state: State) -> State:
    """Takes the reward model's gradient steps of one round."""
    rewards, _ = jax.lax.scan(
        lambda rewards, _: (plan.reward_learner.step(rewards, state.problem, None)[0], None),
        state.rewards,
        length=plan.config.record_every,
    )
    return state._replace(rewards=rewards)


def _train_policy(plan: Plan, state: State) -> State:
    """Takes PPO's gradient steps of one round."""
    state, _ = jax.lax.scan(
        lambda state, _: (_learn_from_a_rollout(plan, state), None),
        state,
        length=plan.config.record_every // PPO_EPOCHS,
    )
    return state


def _learn_from_a_rollout(plan: Plan, state: State) -> State:
    """Draws a rollout, steers beta where it is adaptive, and takes PPO's epochs on the rollout."""
    config, policy, beta = plan.config, state.policy, state.beta
    rollout = roll_out(
        jax.random.fold_in(policy.key, policy.step),
        state.problem,
        plan.domain.log_probs(policy.params.policy),
        policy.params.values,
        state.rewards.params,
        beta,
        config.batch_size,
    )
    if plan.pipeline.is_adaptive:
        beta = losses.adapt_beta(
            beta,
            rollout.kl,
            target=config.kl_target,
            num_samples=config.batch_size,
            horizon=ADAPTIVE_HORIZON,
        )
    policy, _ = jax.lax.scan(
        lambda policy, _: (plan.policy_learner.step(policy, None, rollout)[0], None),
        policy,
        length=PPO_EPOCHS,
    )
    return state._replace(beta=beta, policy=policy)
