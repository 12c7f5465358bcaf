"""The didactic process: a hidden law around a pretrained model, and arms that ask about it."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import World, fit_law, make_world
from experiments.exploration.config import Config, Setting
from shatter import choice, documents, ensembles, evaluation, exploration, losses, training
from shatter.types import Array, Key, Metrics, Params, Query

HELD_OUT_QUERIES = 64
JOINT_DRAWS = 16
PASSIVE_CANDIDATES = 4  # two of them nearly always differ, and their frequencies stay p0's
LEARNING_RATE_RATIO = 0.05  # of a transformer's parameters to a table's logits


class Arm(NamedTuple):
    """A learner, a source of candidates, and how a pair is chosen among them.

    Attributes:
      learner: "ensemble" or "map", the point estimate.
      candidates: "all" documents, samples of the "pretrained" model, or of the "members".
      explore: chooses the pair.
      settings: arguments of `explore` that the config sets: argument -> field of the config.
    """

    learner: str
    candidates: str
    explore: exploration.PairArm
    settings: Mapping[str, str] = MappingProxyType({})


ARMS = {
    "uniform": Arm("ensemble", "all", exploration.uniform),
    "passive": Arm("ensemble", "pretrained", exploration.uniform),
    "passive_map": Arm("map", "pretrained", exploration.uniform),
    "greedy": Arm("map", "all", exploration.greedy),
    "boltzmann": Arm("map", "all", exploration.boltzmann, {"temperature": "boltzmann_temperature"}),
    "thompson": Arm("ensemble", "all", exploration.thompson),
    "double_thompson": Arm("ensemble", "members", exploration.double_thompson),
    "double_thompson_sampled": Arm("ensemble", "all", exploration.double_thompson_sampled),
    "infomax": Arm("ensemble", "members", exploration.infomax),
    "variance": Arm("ensemble", "members", exploration.variance),
    "log_ratio_variance": Arm("ensemble", "members", exploration.log_ratio_variance),
    "ucb": Arm("ensemble", "members", exploration.ucb),
}


class Problem(NamedTuple):
    """The random arrays of a seed, the same for all arms and rounds."""

    params: Params  # the pretrained model
    log_p0: Array  # [D]
    log_q: Array  # [D], the hidden law
    held_out: Array  # int [Q, 2], pairs of documents
    choices: Array  # int [Q]
    joint_queries: Array  # int [J, T, 2], pairs of documents, dyadic: few kinds a row
    joint_choices: Array  # int [J, T]


def baseline_of(arm: str) -> str:
    """Returns the name of the passive arm with the same learner."""
    return "passive" if ARMS[arm].learner == "ensemble" else "passive_map"


def make_process(setting: Setting, arm: str) -> Process:
    """Returns the run of one seed of one arm.

    Args:
      setting: config and learner.
      arm: a name in `ARMS`.

    Returns:
      `start` and `rounds`. The pretrained model, the hidden law and the held-out queries depend on
      the key alone, so that they are the same for all arms; arms with one learner share `start`.
    """
    return Process(_start(setting, ARMS[arm].learner), _rounds(setting, ARMS[arm]))


@functools.cache
def _start(setting: Setting, learner: str) -> Callable[[Key], tuple[Any, Metrics]]:
    world = _world(setting)

    def start(key: Key) -> tuple[Any, Metrics]:
        problem_key, init_key, run_key = jax.random.split(key, 3)
        problem = _draw_problem(problem_key, setting, world)
        arm = Arm(learner, "all", exploration.uniform)  # nothing is asked at the start
        interaction, evaluate = _assemble(setting, arm, world, problem)
        state = interaction.init(init_key)
        return (problem, state, run_key), evaluate(state)

    return start


def _rounds(setting: Setting, arm: Arm) -> Callable[[Any, Array, Chunk], tuple[Any, Metrics]]:
    world = _world(setting)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        problem, state, key = carry
        interaction, evaluate = _assemble(setting, arm, world, problem)
        rater = choice.luce_rater(choice.table_utility(problem.log_q[None]))
        state, metrics = training.run_rounds(
            interaction,
            rater,
            evaluate,
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


def _assemble(
    setting: Setting, arm: Arm, world: World, problem: Problem
) -> tuple[training.Interaction, Callable[[training.InteractionState], Metrics]]:
    ensemble = _ensemble(setting, arm.learner, world, problem.params)

    def score_all(shared: Params, own: Params) -> Array:
        return documents.log_prob(ensemble.apply(shared, own, world.space[0]), *world.space)

    def evaluate(state: training.InteractionState) -> Metrics:
        own = state.members.params
        return _metrics(problem, jax.vmap(score_all, in_axes=(None, 0))(state.shared, own))

    interaction = _interaction(setting.config, arm, ensemble, score_all, problem, world.space)
    return interaction, evaluate


def _draw_problem(key: Key, setting: Setting, world: World) -> Problem:
    """Draws the pretrained model, Gaussian logits for every prefix, and the target around it."""
    table_key, target_key, query_key, choice_key, joint_key, label_key, lm_key = jax.random.split(
        key, 7
    )
    params = world.table.init(table_key)
    target = params + setting.config.spread * jax.random.normal(target_key, params.shape)
    log_p0 = documents.document_log_probs(world.table, params, *world.space)
    log_q = documents.document_log_probs(world.table, target, *world.space)
    if setting.learner == "transformer":
        params = fit_law(world, world.lm.init(lm_key), log_p0)
        log_p0 = documents.document_log_probs(world.lm, params, *world.space)
    held_out = jax.vmap(lambda key: exploration.uniform(key, log_p0[None]))(
        jax.random.split(query_key, HELD_OUT_QUERIES)
    )
    choices = choice.luce_sample(choice_key, log_q[held_out])
    joint = jax.vmap(lambda key: evaluation.dyadic_inputs(key, HELD_OUT_QUERIES))(
        jax.random.split(joint_key, JOINT_DRAWS)
    )
    joint_choices = choice.luce_sample(label_key, log_q[held_out[joint]])
    return Problem(params, log_p0, log_q, held_out, choices, held_out[joint], joint_choices)


def _ensemble(setting: Setting, learner: str, world: World, params: Params) -> ensembles.Ensemble:
    """Returns anchored members, or for a transformer members with tables as prior functions.

    The prior is then on logits of the table, the same whichever model learns.
    """
    config = setting.config
    scale = config.prior_scale * config.spread
    if learner == "map":
        scale = scale if setting.learner == "tabular" else 1.0
        return ensembles.point_estimate(world.lm, params, prior_scale=scale)
    make = ensembles.anchored
    if setting.learner == "transformer":
        make = functools.partial(ensembles.prior_functions, prior_lm=world.table)
    return make(world.lm, params, num_members=config.num_members, prior_scale=scale)


def _interaction(
    config: Config,
    arm: Arm,
    ensemble: ensembles.Ensemble,
    score_all: Callable[[Params, Params], Array],
    problem: Problem,
    space: tuple[Array, Array],
) -> training.Interaction:
    def candidates(key: Key, shared: Params, own: Params) -> Query:
        if arm.candidates == "all":
            return exploration.pool_candidates(*space)
        if arm.candidates == "pretrained":
            return exploration.drawn_candidates(
                key, problem.log_p0, *space, num_candidates=PASSIVE_CANDIDATES
            )
        members = jax.vmap(score_all, in_axes=(None, 0))(shared, own)
        mixture = ensembles.mixture_log_probs(members)
        return exploration.drawn_candidates(
            key, mixture, *space, num_candidates=config.num_candidates
        )

    def score(shared: Params, own: Params, responses: Query) -> Array:
        return score_all(shared, own)[responses.item_ids]

    own_settings = {name: getattr(config, field) for name, field in arm.settings.items()}
    explore = functools.partial(arm.explore, **own_settings)
    is_table = isinstance(problem.params, jax.Array)
    rate = config.learning_rate * (1.0 if is_table else LEARNING_RATE_RATIO)
    return training.interaction(
        ensemble,
        propose=training.pair_proposer(
            candidates, score, explore, num_queries=config.queries_per_round
        ),
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )


def _metrics(problem: Problem, members: Array) -> Metrics:
    """Returns exact measures of the prediction, and losses on held-out queries, of `[M, D]`."""

    def label_log_probs(queries: Array, choices: Array) -> Array:
        shown = members[:, queries]
        return choice.luce_log_prob(shown, jnp.broadcast_to(choices, shown.shape[:-1]))

    marginal = evaluation.marginal_log_loss(label_log_probs(problem.held_out, problem.choices))
    joint = evaluation.joint_log_loss(label_log_probs(problem.joint_queries, problem.joint_choices))
    mixture = ensembles.mixture_log_probs(members)
    return {
        **evaluation.prediction_metrics(mixture, problem.log_p0, problem.log_q),
        "pretrained_kl": documents.kl_divergence(problem.log_q, problem.log_p0),
        "choice_log_loss": jnp.mean(marginal),
        "joint_log_loss": jnp.mean(joint),
    }
