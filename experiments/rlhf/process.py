"""The run of one seed of one objective."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, Problem
from experiments.rlhf.objectives import (
    ADAPTIVE_HORIZON,
    PPO_EPOCHS,
    Objective,
    measures,
    over_optimisation,
    policy_loss,
    reward_loss,
    roll_out,
)
from shatter import evaluation, losses, training
from shatter.types import Array, Key, Metrics

TRANSFORMER_RATE = 0.1  # of the learning rate of a table's logits
CURVE_BETAS = (10.0, 0.01, 40)  # of the over-optimisation curves: first, last, number


def make_process(config: Config, domain: Domain, objective: Objective) -> Process:
    """The run of one seed; its input is `(the domain's input, a key, beta)`.

    Args:
      config: the config.
      domain: what is compared.
      objective: what is trained how.

    Returns:
      `start` and `rounds`; a round is `config.record_every` gradient steps and a measurement.
    """
    return (
        _direct(config, domain, objective)
        if objective.loss
        else _pipeline(config, domain, objective)
    )


def _optimizer(config: Config, num_steps: int, scale: float = 1.0) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(scale * config.learning_rate, num_steps))


def _policy_scale(config: Config) -> float:
    return 1.0 if config.model == "tabular" else TRANSFORMER_RATE


def _measure(
    domain: Domain, objective: Objective, problem: Problem, log_probs: Array, beta: Array
) -> Metrics:
    optimum = objective.optimum(problem, beta) if objective.optimum else None
    return measures(domain, problem, log_probs, optimum)


def _direct(config: Config, domain: Domain, objective: Objective) -> Process:
    """Minibatches of the comparisons, one loss."""
    loss = objective.loss
    assert loss is not None

    def train(params: Any, frozen: Any, key: Key, batch: None) -> tuple[Array, Metrics]:
        del batch
        problem, beta = frozen
        at = jax.random.randint(key, (config.batch_size,), 0, config.num_comparisons)
        return loss(config, problem, domain.log_probs(params), at, beta), {}

    optimizer = _optimizer(config, config.num_steps, _policy_scale(config))
    fit = training.learner(train, optimizer)

    def start(inputs: tuple[Any, Key, Array]) -> tuple[Any, Metrics]:
        drawn, key, beta = inputs
        problem = domain.draw(drawn)
        metrics = _measure(domain, objective, problem, problem.log_p0, beta)
        return (problem, beta, fit.init(problem.params, key)), metrics

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        del first_round

        def record(carry: Any, _: None) -> tuple[Any, Metrics]:
            problem, beta, state = carry
            state, _ = jax.lax.scan(
                lambda state, _: (fit.step(state, (problem, beta), None)[0], None),
                state,
                length=config.record_every,
            )
            log_probs = domain.log_probs(state.params)
            return (problem, beta, state), _measure(domain, objective, problem, log_probs, beta)

        return jax.lax.scan(record, carry, length=chunk.num_rounds)

    return Process(start, rounds)


def _pipeline(config: Config, domain: Domain, objective: Objective) -> Process:
    """A reward model, then PPO; without a policy, the reward model and its exact posterior.

    Of a pipeline with a policy the first half of the rounds trains the reward model.
    """
    num_comparisons = max(int(objective.share * config.num_comparisons), 1)
    num_rounds = config.num_steps // config.record_every
    reward_rounds = num_rounds // 2 if objective.policy else num_rounds
    reward_fit = training.learner(
        lambda rewards, problem, key, batch: (
            reward_loss(
                problem,
                rewards,
                jax.random.randint(key, (config.batch_size,), 0, num_comparisons),
            ),
            {},
        ),
        _optimizer(config, reward_rounds * config.record_every),
    )
    policy_fit = training.learner(
        lambda trainable, frozen, key, rollout: (
            policy_loss(domain.log_probs(trainable["policy"]), trainable["values"], rollout),
            {},
        ),
        _optimizer(
            config, (num_rounds - reward_rounds) * config.record_every + 1, _policy_scale(config)
        ),
    )

    def start(inputs: tuple[Any, Key, Array]) -> tuple[Any, Metrics]:
        drawn, key, beta = inputs
        problem = domain.draw(drawn)
        reward_key, policy_key = jax.random.split(key)
        trainable = {"policy": problem.params, "values": jnp.zeros(len(problem.log_p0))}
        reward_state = reward_fit.init(jnp.zeros_like(problem.log_p0), reward_key)
        carry = (problem, beta, reward_state, policy_fit.init(trainable, policy_key))
        return carry, report(carry)

    def report(carry: Any) -> Metrics:
        problem, beta, reward_state, policy_state = carry
        if objective.policy:
            log_probs = domain.log_probs(policy_state.params["policy"])
            metrics = _measure(domain, objective, problem, log_probs, beta)
            return metrics | {"beta": beta} if objective.adaptive else metrics
        log_probs, _ = evaluation.posterior_optimum(problem.log_p0, reward_state.params, beta=beta)
        curves = over_optimisation(problem, reward_state.params, jnp.geomspace(*CURVE_BETAS))
        return _measure(domain, objective, problem, log_probs, beta) | curves

    def reward_steps(carry: Any) -> Any:
        problem, beta, state, policy_state = carry
        state, _ = jax.lax.scan(
            lambda state, _: (reward_fit.step(state, problem, None)[0], None),
            state,
            length=config.record_every,
        )
        return problem, beta, state, policy_state

    def policy_steps(carry: Any) -> Any:
        def one_rollout(carry: Any, _: None) -> tuple[Any, None]:
            problem, beta, reward_state, state = carry
            rollout = roll_out(
                jax.random.fold_in(state.key, state.step),
                problem,
                domain.log_probs(state.params["policy"]),
                state.params["values"],
                reward_state.params,
                beta,
                config.batch_size,
            )
            if objective.adaptive:
                beta = losses.adapt_beta(
                    beta,
                    rollout.kl,
                    target=config.kl_target,
                    num_samples=config.batch_size,
                    horizon=ADAPTIVE_HORIZON,
                )
            state, _ = jax.lax.scan(
                lambda state, _: (policy_fit.step(state, None, rollout)[0], None),
                state,
                length=PPO_EPOCHS,
            )
            return (problem, beta, reward_state, state), None

        return jax.lax.scan(one_rollout, carry, length=config.record_every // PPO_EPOCHS)[0]

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        def record(carry: Any, round_number: Array) -> tuple[Any, Metrics]:
            if objective.policy:
                is_reward = round_number < reward_rounds
                carry = jax.lax.cond(is_reward, reward_steps, policy_steps, carry)
            else:
                carry = reward_steps(carry)
            return carry, report(carry)

        return jax.lax.scan(record, carry, first_round + jnp.arange(chunk.num_rounds))

    return Process(start, rounds)
