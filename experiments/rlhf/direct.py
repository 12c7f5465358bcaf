"""The run of a direct objective: minibatches of the comparisons and one loss."""

from typing import Any, NamedTuple

import jax

from experiments.common.chunks import Chunk, Process
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, Problem
from experiments.rlhf.measures import measure
from experiments.rlhf.objectives import Direct, Objective
from experiments.rlhf.optimizers import make_policy_optimizer
from shatter import training
from shatter.types import Array, Key, Metrics, Params


class State(NamedTuple):
    """What one seed carries: its problem, its beta `[]` and the policy in training."""

    problem: Problem
    beta: Array
    policy: training.TrainState


def direct_process(config: Config, domain: Domain, objective: Objective, direct: Direct) -> Process:
    """Returns the run of one seed of a direct objective.

    Args:
      config: the config.
      domain: what is compared.
      objective: the objective.
      direct: its training.

    Returns:
      `start` and `rounds`, as in `process.make_process`.
    """
    learner = _make_learner(config, domain, direct)

    def start(inputs: tuple[Any, Key, Array]) -> tuple[State, Metrics]:
        drawn, key, beta = inputs
        problem = domain.draw(drawn)
        metrics = measure(domain, objective, problem, problem.log_p0, beta)
        return State(problem, beta, learner.init(problem.params, key)), metrics

    def one_round(state: State, _: None) -> tuple[State, Metrics]:
        problem, beta, policy = state
        policy, _ = jax.lax.scan(
            lambda policy, _: (learner.step(policy, (problem, beta), None)[0], None),
            policy,
            length=config.record_every,
        )
        log_probs = domain.log_probs(policy.params)
        metrics = measure(domain, objective, problem, log_probs, beta)
        return State(problem, beta, policy), metrics

    def rounds(state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
        del first_round
        return jax.lax.scan(one_round, state, length=chunk.num_rounds)

    return Process(start, rounds)


def _make_learner(config: Config, domain: Domain, direct: Direct) -> training.Learner:
    def loss(
        params: Params, frozen: tuple[Problem, Array], key: Key, batch: None
    ) -> tuple[Array, Metrics]:
        del batch
        problem, beta = frozen
        indices = jax.random.randint(key, (config.batch_size,), 0, config.num_comparisons)
        return direct.loss(config, problem, domain.log_probs(params), indices, beta), {}

    return training.learner(loss, make_policy_optimizer(config, config.num_steps))
