"""The didactic process: a hidden law around a pretrained model, and learners that look for it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World, fit_law, make_world
from experiments.exploration import asking
from experiments.exploration import learners as learners_of
from experiments.exploration.arms import Arm, arm_of
from experiments.exploration.config import Config, Setting
from experiments.exploration.learners import Learners, State, make_learners
from shatter import (
    choice,
    ensembles,
    evaluation,
    exploration,
    numerics,
    training,
)
from shatter.types import Array, Key, Metrics, Params, Query

HELD_OUT_QUERIES = 64
JOINT_DRAWS = 16


class Problem(NamedTuple):
    """The random arrays of a seed, the same for all arms and rounds."""

    params: Params  # the pretrained model
    log_p0: Array  # [D]
    segments: Array  # [G, D], the hidden laws of the population's segments
    held_out: Array  # int [Q, 2], pairs of documents
    choices: Array  # int [Q]
    joint_queries: Array  # int [J, T, 2], pairs of documents, dyadic: few kinds a row
    joint_choices: Array  # int [J, T]


def make_process(setting: Setting, arm: str) -> Process:
    """Returns the run of one seed of one arm.

    Args:
      setting: config and learner.
      arm: a name in `ARMS`.

    Returns:
      `start` and `rounds`. The pretrained model, the hidden law and the held-out queries depend on
      the key alone, so that they are the same for all arms; arms share `start`.
    """
    config = setting.config
    chosen = arm_of(arm, source=config.candidates, temperature=config.temperature)
    return Process(_start(setting), _rounds(setting, chosen))


@functools.cache
def _start(setting: Setting) -> Callable[[Key], tuple[Any, Metrics]]:
    world = _world(setting)

    def start(key: Key) -> tuple[Any, Metrics]:
        problem_key, init_key, run_key = jax.random.split(key, 3)
        problem = _draw_problem(problem_key, setting, world)
        learners = make_learners(setting, world, problem.params)
        state = learners_of.start(learners, init_key)
        return (problem, state, run_key), _evaluate(problem, learners, state)

    return start


def _rounds(setting: Setting, arm: Arm) -> Callable[[Any, Array, Chunk], tuple[Any, Metrics]]:
    world = _world(setting)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        problem, state, key = carry
        learners = make_learners(setting, world, problem.params)
        state, metrics = training.run_rounds(
            _together(setting, arm, world, problem, learners),
            _rater(setting.config, problem),
            functools.partial(_evaluate, problem, learners),
            state,
            key,
            num_rounds=chunk.num_rounds,
            first_round=first_round,
        )
        return (problem, state, key), metrics

    return rounds


def _world(setting: Setting) -> World:
    config = setting.config
    return make_world(setting.learner, vocab_size=config.vocab_size, max_length=config.max_length)


def _rater(config: Config, problem: Problem) -> Any:
    weights = jnp.zeros(config.num_segments)
    if config.num_responses is None or config.num_responses == 2:
        table = problem.segments.T
        return choice.segment_rater(lambda query: table[query.item_ids].T, weights)
    return choice.plackett_luce_rater(choice.table_utility(_law(problem)[None]))


def _law(problem: Problem) -> Array:
    """Returns the population's law, the mean of its segments'."""
    return ensembles.mixture_log_probs(problem.segments)


def _draw_problem(key: Key, setting: Setting, world: World) -> Problem:
    """Draws the pretrained model, Gaussian logits for every prefix, and the targets around it."""
    table_key, target_key, query_key, choice_key, joint_key, label_key, lm_key = jax.random.split(
        key, 7
    )
    config = setting.config
    of_table = make_world(
        "tabular", vocab_size=config.vocab_size, max_length=config.max_length
    ).log_probs
    params = world.table.init(table_key)
    shape = (config.num_segments, *params.shape)
    targets = params[None] + config.spread * jax.random.normal(target_key, shape)
    log_p0, segments = of_table(params), jax.vmap(of_table)(targets)
    if setting.learner == "transformer":
        params = fit_law(world, world.lm.init(lm_key), log_p0)
        log_p0 = world.log_probs(params)
    held_out = jax.vmap(lambda key: exploration.uniform(key, log_p0[None]))(
        jax.random.split(query_key, HELD_OUT_QUERIES)
    )
    choices = _choose(choice_key, segments, held_out)
    joint = jax.vmap(lambda key: evaluation.dyadic_inputs(key, HELD_OUT_QUERIES))(
        jax.random.split(joint_key, JOINT_DRAWS)
    )
    joint_choices = _choose(label_key, segments, held_out[joint])
    return Problem(params, log_p0, segments, held_out, choices, held_out[joint], joint_choices)


def _choose(key: Key, segments: Array, queries: Array) -> Array:
    """Returns the choices `[...]` of new people about queries `[..., K]`, each of some segment."""
    segment_key, choice_key = jax.random.split(key)
    segment = jax.random.randint(segment_key, queries.shape[:-1], 0, segments.shape[0])
    return choice.luce_sample(choice_key, segments[segment[..., None], queries])


def _together(
    setting: Setting, arm: Arm, world: World, problem: Problem, learners: Learners
) -> training.Interaction:
    """Returns the interaction in which an arm asks and both learners learn."""
    config = setting.config

    def propose(state: State, key: Key) -> Query:
        known = asking.Known(
            learners.member_laws(state.members),
            learners.point_law(state.point)[0],
            lambda: learners_of.posterior(setting, world, state.point),
        )
        return asking.ask(arm, config, key, known, problem.log_p0, world.space)

    return training.Interaction(
        functools.partial(learners_of.start, learners),
        propose,
        functools.partial(learners_of.learn, learners),
    )


def _evaluate(problem: Problem, learners: Learners, state: State) -> Metrics:
    """Returns exact measures of both predictions, and the members' losses on held-out queries."""
    members, point = learners.member_laws(state.members), learners.point_law(state.point)[0]
    log_q = _law(problem)

    def label_log_probs(queries: Array, choices: Array) -> Array:
        shown = members[:, queries]
        return choice.luce_log_prob(shown, jnp.broadcast_to(choices, shown.shape[:-1]))

    marginal = evaluation.marginal_log_loss(label_log_probs(problem.held_out, problem.choices))
    joint = evaluation.joint_log_loss(label_log_probs(problem.joint_queries, problem.joint_choices))
    mixture = ensembles.mixture_log_probs(members)
    regret = jax.vmap(numerics.kl_divergence, in_axes=(0, None))(members, mixture)
    return {
        **evaluation.prediction_metrics(mixture, problem.log_p0, log_q),
        "point_kl": numerics.kl_divergence(log_q, point),
        "own_regret": jnp.mean(regret),
        "pretrained_kl": numerics.kl_divergence(log_q, problem.log_p0),
        "choice_log_loss": jnp.mean(marginal),
        "joint_log_loss": jnp.mean(joint),
    }
