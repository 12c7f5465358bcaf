"""The didactic process: a hidden law around a pretrained model, and learners that look for it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World, fit_law, make_world, open_logits
from experiments.exploration import asking
from experiments.exploration.arms import Arm, arm_of
from experiments.exploration.config import Config, Setting
from shatter import (
    choice,
    documents,
    ensembles,
    evaluation,
    exploration,
    losses,
    numerics,
    training,
)
from shatter.types import Array, Comparison, Key, Metrics, Params, Query

HELD_OUT_QUERIES = 64
JOINT_DRAWS = 16
LEARNING_RATE_RATIO = 0.05  # of a transformer's parameters to a table's logits


class Problem(NamedTuple):
    """The random arrays of a seed, the same for all arms and rounds."""

    params: Params  # the pretrained model
    log_p0: Array  # [D]
    segments: Array  # [G, D], the hidden laws of the population's segments
    held_out: Array  # int [Q, 2], pairs of documents
    choices: Array  # int [Q]
    joint_queries: Array  # int [J, T, 2], pairs of documents, dyadic: few kinds a row
    joint_choices: Array  # int [J, T]


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
        learners = _learners(setting, world, problem.params)
        keys = jax.random.split(init_key)
        state = State(learners.point.init(keys[0]), learners.members.init(keys[1]))
        return (problem, state, run_key), _evaluate(problem, learners, state)

    return start


def _rounds(setting: Setting, arm: Arm) -> Callable[[Any, Array, Chunk], tuple[Any, Metrics]]:
    world = _world(setting)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        problem, state, key = carry
        learners = _learners(setting, world, problem.params)
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
    log_q = ensembles.mixture_log_probs(segments)
    if setting.learner == "transformer":
        params = fit_law(world, world.lm.init(lm_key), log_p0)
        log_p0 = world.log_probs(params)
    held_out = jax.vmap(lambda key: exploration.uniform(key, log_p0[None]))(
        jax.random.split(query_key, HELD_OUT_QUERIES)
    )
    choices = choice.luce_sample(choice_key, log_q[held_out])
    joint = jax.vmap(lambda key: evaluation.dyadic_inputs(key, HELD_OUT_QUERIES))(
        jax.random.split(joint_key, JOINT_DRAWS)
    )
    joint_choices = choice.luce_sample(label_key, log_q[held_out[joint]])
    return Problem(params, log_p0, segments, held_out, choices, held_out[joint], joint_choices)


def _learners(setting: Setting, world: World, params: Params) -> Learners:
    """Returns the point estimate and the members, which start at the pretrained model.

    A table's members are anchored at draws of their prior; a transformer's have tables as prior
    functions, so that the prior is on logits of the table, the same whichever model learns.
    """
    config = setting.config
    scale = config.prior_scale * config.spread
    is_table = setting.learner == "tabular"
    make = ensembles.anchored
    if not is_table:
        make = functools.partial(ensembles.prior_functions, prior_lm=world.table)
    members = make(world.lm, params, num_members=config.num_members, prior_scale=scale)
    if is_table and config.start == "centre":
        members = members._replace(start=lambda anchor: params)
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


def _laws(
    world: World, is_table: bool, ensemble: ensembles.Ensemble
) -> Callable[[Params, Params], Array]:
    """Returns `(shared, own_of_one) -> [D]`, a member's law."""
    if is_table:
        return lambda shared, own: world.log_probs(own)
    return lambda shared, own: documents.log_prob(
        ensemble.apply(shared, own, world.space[0]), *world.space
    )


def _learner(
    config: Config,
    world: World,
    is_table: bool,
    ensemble: ensembles.Ensemble,
    law: Callable[[Params, Params], Array],
) -> training.Interaction:
    num_responses = config.num_responses or 2
    shown = exploration.pool_candidates(
        world.space[0][:num_responses], world.space[1][:num_responses]
    )

    def propose(*_: Any) -> Query:
        raise NotImplementedError("queries are proposed from both learners together")

    return training.interaction(
        ensemble,
        propose=propose,
        score=lambda shared, own, responses: law(shared, own)[responses.item_ids],
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(config.learning_rate * (1.0 if is_table else LEARNING_RATE_RATIO)),
        query=shown,
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )


def _together(
    setting: Setting, arm: Arm, world: World, problem: Problem, learners: Learners
) -> training.Interaction:
    """Returns the interaction in which an arm asks and both learners learn."""
    config = setting.config

    def propose(state: State, key: Key) -> Query:
        known = asking.Known(
            learners.member_laws(state.members),
            learners.point_law(state.point)[0],
            lambda: posterior(setting, world, state.point),
        )
        return asking.ask(arm, config, key, known, problem.log_p0, world.space)

    def learn(state: State, comparisons: Comparison) -> tuple[State, Metrics]:
        point, _ = learners.point.learn(state.point, comparisons)
        members, metrics = learners.members.learn(state.members, comparisons)
        return State(point, members), metrics

    def init(key: Key) -> State:
        keys = jax.random.split(key)
        return State(learners.point.init(keys[0]), learners.members.init(keys[1]))

    return training.Interaction(init, propose, learn)


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
