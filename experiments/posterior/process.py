"""The run of one seed of one objective: gradient steps and exact measures."""

from typing import Any

import jax
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World
from experiments.posterior.config import Config
from experiments.posterior.methods import Method, policy
from experiments.posterior.problem import Setting, draw_problem, measure
from shatter import training
from shatter.types import Array, Key, Metrics

TRANSFORMER_RATE = 0.1  # of the learning rate of a table's logits


def make_process(config: Config, world: World, setting: Setting, method: Method) -> Process:
    """The run of one seed; its input is `(key, level)`, see `problem.Setting`.

    Args:
      config: the config.
      world: the model and all documents.
      setting: rewards and target.
      method: the objective.

    Returns:
      `start` and `rounds`; a round is `config.record_every` gradient steps and a measurement.
    """
    scale = 1.0 if world.lm is world.table else TRANSFORMER_RATE
    rate = optax.cosine_decay_schedule(scale * config.learning_rate, config.num_steps)

    def objective(trainable: Any, frozen: Any, key: Key, batch: Any) -> tuple[Array, Metrics]:
        del key
        return method.loss(frozen, trainable, batch), {}

    fit = training.learner(objective, optax.adam(rate))

    def start(inputs: tuple[Key, Array]) -> tuple[Any, Metrics]:
        key, level = inputs
        problem_key, run_key = jax.random.split(key)
        problem = draw_problem(problem_key, level, world, setting)
        trainable, extra = method.start(problem)
        return (problem, fit.init(trainable, run_key), extra), measure(problem, problem.log_p0)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        del first_round

        def batch_of_steps(carry: tuple, _: None) -> tuple[tuple, None]:
            problem, state, extra = carry
            key = jax.random.fold_in(state.key, state.step)
            batch = method.draw(problem, state.params, extra, key)
            extra = method.after(problem, state.params, extra, batch)
            state, _ = jax.lax.scan(
                lambda state, _: (fit.step(state, problem, batch)[0], None),
                state,
                length=method.epochs,
            )
            return (problem, state, extra), None

        def record(carry: tuple, _: None) -> tuple[tuple, Metrics]:
            length = config.record_every // method.epochs
            carry, _ = jax.lax.scan(batch_of_steps, carry, length=length)
            problem, state, _ = carry
            return carry, measure(problem, policy(world, state.params["policy"]))

        return jax.lax.scan(record, carry, length=chunk.num_rounds)

    return Process(start, rounds)
