"""The run of one seed of an objective: gradient steps and exact measures."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World
from experiments.posterior.base import Method, Setup, policy
from experiments.posterior.config import Config
from experiments.posterior.problem import Problem, Setting, draw_problem, measure
from shatter import training
from shatter.types import Array, Key, Metrics

TRANSFORMER_RATE = 0.1  # a transformer's share of the learning rate of a table's logits


class State(NamedTuple):
    """What one seed carries from batch to batch.

    Attributes:
      problem: what the seed drew once.
      training: the trained parameters and the optimiser's state.
      memory: what the objective remembers from earlier batches.
    """

    problem: Problem
    training: training.TrainState
    memory: Any


def make_processes(
    config: Config, world: World, setting: Setting, methods: dict[str, Method]
) -> dict[str, Process]:
    """Returns the run of one seed of every method; its input is `(key, level)`, see `Setting`.

    Methods that start alike share the function `start`, so that it is compiled once for all.

    Args:
      config: the config.
      world: the model and all documents.
      setting: makes the rewards and the target.
      methods: the objectives by name.

    Returns:
      By name, `start` and `rounds`; a round is `config.record_every` gradient steps and a
      measurement.
    """
    setup = Setup(world, config.batch_size)
    starts: dict[Any, Any] = {}
    processes = {}
    for name, method in methods.items():
        learner = _make_learner(config, setup, method)
        start = partial(_start, world, setting, method.start, learner)
        rounds = partial(_rounds, config, setup, method, learner)
        processes[name] = Process(starts.setdefault(method.start, start), rounds)
    return processes


def _start(
    world: World,
    setting: Setting,
    start_method: Callable[[Problem], tuple[Any, Any]],
    learner: training.Learner,
    inputs: tuple[Key, Array],
) -> tuple[State, Metrics]:
    """Draws the problem of a seed; returns the first state and the measures of p0."""
    key, level = inputs
    problem_key, run_key = jax.random.split(key)
    problem = draw_problem(problem_key, level, world, setting)
    trainable, memory = start_method(problem)
    state = State(problem, learner.init(trainable, run_key), memory)
    return state, measure(problem, problem.log_p0)


def _rounds(
    config: Config,
    setup: Setup,
    method: Method,
    learner: training.Learner,
    state: State,
    first_round: Array,
    chunk: Chunk,
) -> tuple[State, Metrics]:
    """Runs the rounds of a chunk; returns the state and the measures after each round."""
    del first_round
    learn = partial(_learn_from_a_batch, setup, method, learner)

    def one_round(state: State, _: None) -> tuple[State, Metrics]:
        state, _ = jax.lax.scan(learn, state, length=config.record_every // method.epochs)
        return state, measure(state.problem, policy(setup.world, state.training.params.policy))

    return jax.lax.scan(one_round, state, length=chunk.num_rounds)


def _make_learner(config: Config, setup: Setup, method: Method) -> training.Learner:
    """Returns the objective with Adam, whose learning rate falls to 0 by a cosine."""
    scale = 1.0 if setup.world.lm is setup.world.table else TRANSFORMER_RATE
    rate = optax.cosine_decay_schedule(scale * config.learning_rate, config.num_steps)

    def objective(trainable: Any, problem: Any, key: Key, batch: Any) -> tuple[Array, Metrics]:
        del key
        return method.loss(setup, problem, trainable, batch), {}

    return training.learner(objective, optax.adam(rate))


def _learn_from_a_batch(
    setup: Setup, method: Method, learner: training.Learner, state: State, _: None
) -> tuple[State, None]:
    """Draws a batch, updates the memory and takes `method.epochs` gradient steps on the batch."""
    problem, trained, memory = state
    key = jax.random.fold_in(trained.key, trained.step)
    batch = method.draw(setup, problem, trained.params, memory, key)
    memory = method.remember(setup, problem, trained.params, memory, batch)
    trained, _ = jax.lax.scan(
        lambda trained, _: (learner.step(trained, problem, batch)[0], None),
        trained,
        length=method.epochs,
    )
    return State(problem, trained, memory), None
