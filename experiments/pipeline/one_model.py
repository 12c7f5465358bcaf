"""One model that is its own reward model: ILHF with an ensemble, and DPO."""

from functools import partial
from typing import NamedTuple

import jax
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


class Plan(NamedTuple):
    """What all rounds of a seed share.

    Attributes:
      setting: config and kind of model.
      algorithm: the algorithm.
      world: documents and models.
      problem: what the seed drew.
      ensemble: the members, or one of them.
    """

    setting: Setting
    algorithm: Algorithm
    world: World
    problem: Problem
    ensemble: ensembles.Ensemble


def one_model_process(setting: Setting, algorithm: Algorithm) -> Process:
    """Returns the run of one seed of ILHF or DPO; its input is a key."""
    world = of_world.world_of(setting)

    def start(key: Key) -> tuple[tuple, Metrics]:
        problem_key, init_key, _, run_key = jax.random.split(key, 4)
        problem = of_world.draw_problem(problem_key, setting, world)
        plan = _make_plan(setting, algorithm, world, problem)
        state = _interaction(plan).init(init_key)
        return (problem, state, run_key), _report(plan, state)

    def rounds(carry: tuple, first_round: Array, chunk: Chunk) -> tuple[tuple, Metrics]:
        problem, state, key = carry
        plan = _make_plan(setting, algorithm, world, problem)
        state, metrics = training.run_rounds(
            _interaction(plan),
            of_world.rater_of(problem),
            partial(_report, plan),
            state,
            key,
            num_rounds=chunk.num_rounds,
            first_round=first_round,
        )
        del metrics["loss"]
        return (problem, state, key), metrics

    return Process(start, rounds)


def _make_plan(setting: Setting, algorithm: Algorithm, world: World, problem: Problem) -> Plan:
    """Puts the prior on the logits of the table; DPO's logits are rewards over beta."""
    config = setting.config
    scale, is_table = config.prior_scale * config.spread, setting.learner == "tabular"
    if algorithm.kind == "dpo":
        ensemble = ensembles.point_estimate(
            world.lm, problem.params, prior_scale=scale / config.dpo_beta if is_table else 1.0
        )
    else:
        make = (
            partial(ensembles.anchored, start="centre")
            if is_table
            else partial(ensembles.prior_functions, prior_lm=world.table)
        )
        ensemble = make(world.lm, problem.params, num_members=config.num_members, prior_scale=scale)
    return Plan(setting, algorithm, world, problem, ensemble)


def _interaction(plan: Plan) -> training.Interaction:
    config = plan.setting.config
    rate = config.learning_rate * of_world.TABLE_RATE[plan.setting.learner]

    def score(shared: Params, own: Params, responses: Query) -> Array:
        return of_world.values_of(responses, _utilities(plan, _law(plan, shared, own)))

    def propose(key: Key, shared: Params, own: Params, store: training.Store) -> Query:
        del store
        laws = jax.vmap(partial(_law, plan), in_axes=(None, 0))(shared, own)
        return _ask(plan, laws, key)

    return training.interaction(
        plan.ensemble,
        propose=propose,
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
    )


def _law(plan: Plan, shared: Params, own: Params) -> Array:
    """Returns a member's law of all documents, `[D]`."""
    if plan.setting.learner == "tabular":
        return plan.world.log_probs(own)
    return plan.world.law_of(partial(plan.ensemble.apply, shared, own))


def _utilities(plan: Plan, law: Array) -> Array:
    """Returns what Luce's rule is applied to: log pi, or DPO's reward beta log(pi / p0)."""
    if plan.algorithm.kind == "ilhf":
        return law
    return plan.setting.config.dpo_beta * (law - plan.problem.log_p0)


def _ask(plan: Plan, laws: Array, key: Key) -> Query:
    """Returns the queries of a round, about the mixture's own responses or the pretrained ones."""
    algorithm, config = plan.algorithm, plan.setting.config
    mixture = ensembles.mixture_log_probs(laws)
    law = plan.problem.log_p0 if algorithm.responses == "pretrained" else mixture
    candidate_key, choice_key = jax.random.split(key)
    pools = of_world.draw_candidates(candidate_key, config, algorithm, law, plan.world.space)
    chosen = of_world.choose_pairs(choice_key, algorithm.arm, pools, laws, mixture)
    return jax.vmap(training.take_responses)(pools, chosen)


def _report(plan: Plan, state: training.InteractionState) -> Metrics:
    config: Config = plan.setting.config
    laws = jax.vmap(partial(_law, plan), in_axes=(None, 0))(state.shared, state.members.params)
    mixture = ensembles.mixture_log_probs(laws)
    return measure(
        plan.problem,
        plan.world.space,
        mixture,
        _utilities(plan, mixture),
        vocab_size=config.vocab_size,
        beta=config.readout_beta,
    )
