"""The run of one seed of one arm: queries are chosen from a pool, and recorded votes answer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.active.arms import ARMS, Arm
from experiments.active.config import Setting
from experiments.active.learners import Learner, blank_query, make_learner
from experiments.active.measures import measures
from experiments.active.splits import AnyArray, Division, Votes
from experiments.common.chunks import Chunk, Process
from shatter import choice, training
from shatter.cli.common.frozen import Table
from shatter.models import TransformerConfig
from shatter.training import Interaction, InteractionState, Store
from shatter.types import Array, Comparison, Key, Metrics, Params, Query, item_query


class Problem(NamedTuple):
    """The input of a seed.

    Attributes:
      key: a typed key.
      table: arrays about the N texts. Empty in the state, whose members hold it.
      log_prob: `[N]`, the frozen model's mean log-prob of a token, nats.
      division: of the data.
      base: parameters of the frozen model below which adapters lie; else empty.
      prior_scale: `[]`, the ensemble's.
    """

    key: Key
    table: Table
    log_prob: AnyArray
    division: Division
    base: Params
    prior_scale: AnyArray


class State(NamedTuple):
    """What a run carries.

    Attributes:
      problem: without its table.
      interaction: the members, whose `shared` is `(the ensemble's shared, table)`, and the
        comparisons so far.
    """

    problem: Problem
    interaction: InteractionState


def make_process(
    setting: Setting, arm: str, transformer: TransformerConfig | None = None
) -> Process:
    """Returns the run of one seed of one arm.

    Args:
      setting: what learns, and how much is asked.
      arm: a name in `ARMS`.
      transformer: the frozen model's config, where adapters learn.

    Returns:
      `start` and `rounds`. All arms start from the same members.
    """
    return Process(_start(setting, transformer), _rounds(setting, ARMS[arm], transformer))


@functools.cache
def _start(
    setting: Setting, transformer: TransformerConfig | None
) -> Callable[[Problem], tuple[State, Metrics]]:
    """Returns the start of all arms, one function, so that it is compiled once."""

    def start(problem: Problem) -> tuple[State, Metrics]:
        learner = _learner(setting, transformer, problem, problem.table)
        process = _interaction(setting, ARMS["random"], learner, problem, problem.table, 1)
        interaction = process.init(jax.random.fold_in(problem.key, 0))
        interaction = interaction._replace(key=jax.random.fold_in(problem.key, 1))
        state = State(problem._replace(table={}), interaction)
        return state, _evaluate(learner, problem, interaction)

    return start


def _rounds(
    setting: Setting, arm: Arm, transformer: TransformerConfig | None
) -> Callable[[State, Array, Chunk], tuple[State, Metrics]]:
    def rounds(state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
        problem, interaction = state
        _, table = interaction.shared
        learner = _learner(setting, transformer, problem, table)
        interaction, metrics = training.run_rounds(
            _interaction(setting, arm, learner, problem, table, chunk.num_queries),
            choice.recorded_vote_rater(problem.division.pool.votes),
            functools.partial(_evaluate, learner, problem),
            interaction,
            interaction.key,
            num_rounds=chunk.num_rounds,
            first_round=first_round,
            ask=training.ask_together,
        )
        return State(problem, interaction), metrics

    return rounds


def _learner(
    setting: Setting, transformer: TransformerConfig | None, problem: Problem, table: Table
) -> Learner:
    return make_learner(
        setting,
        transformer,
        problem.base,
        num_features=table["features"].shape[-1] if "features" in table else 0,
        prior_scale=problem.prior_scale,
    )


def _interaction(
    setting: Setting,
    arm: Arm,
    learner: Learner,
    problem: Problem,
    table: Table,
    num_queries: int,
) -> Interaction:
    """Returns the interaction of an arm.

    A round's key splits into four: `run_rounds` proposes by the first and answers by the second;
    `learn` draws the members' weights by the third and the batches by the fourth.
    """
    few = arm.is_costly and setting.kind != "laplace"
    num_candidates = setting.num_design if few else setting.num_candidates
    propose = training.query_proposer(
        functools.partial(candidates, num_candidates, problem.division.pool),
        functools.partial(_utilities, arm, learner, problem),
        arm.bound(setting.config),
        num_queries=num_queries,
    )
    process = learner.interaction(table, propose, query=blank_query(), capacity=setting.budget)

    def learn(state: InteractionState, comparisons: Comparison) -> tuple[InteractionState, Metrics]:
        _, _, *keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        return process.learn(state, comparisons, keys)

    return process._replace(learn=learn)


def candidates(
    num_candidates: int, pool: Votes, key: Key, shared: Params, own: Params, store: Store
) -> Query:
    """Draws pairs of the pool that have votes and were not asked.

    Args:
      num_candidates: how many pairs to draw, at most all.
      pool: the pairs that may be asked.
      key: a typed key.
      shared: not used.
      own: not used.
      store: the comparisons so far.

    Returns:
      Pairs whose `prompt_id` is their number in the pool; not valid where too few are left.
    """
    del shared, own
    free = ~training.asked(store, len(pool.votes)) & (jnp.sum(pool.votes, axis=-1) > 0)
    order = jnp.argsort(jnp.where(free, jax.random.uniform(key, free.shape), 2.0))
    numbers = order[: min(num_candidates, free.size)]
    items = pool.items[numbers]
    valid = jnp.broadcast_to(free[numbers][:, None], items.shape)
    return item_query(items, prompt_id=numbers, valid=valid)


def _utilities(
    arm: Arm, learner: Learner, problem: Problem, shared: Params, own: Params, queries: Query
) -> Any:
    """Returns what the arm sees: utilities `[M, Q, 2]`, nats, or a belief about them.

    M = 1 where the utilities are not the members'.
    """
    if arm.by == "members":
        return learner.utilities(shared, own, queries.item_ids)
    if arm.by == "belief":
        return learner.belief(shared, own, queries.item_ids)
    if arm.by == "frozen":
        return problem.log_prob[queries.item_ids][None]
    return jnp.zeros((1, *queries.item_ids.shape))


def _evaluate(learner: Learner, problem: Problem, state: InteractionState) -> Metrics:
    division, own = problem.division, state.members.params
    key = jax.random.fold_in(problem.key, 2)
    ranks = state.store.comparisons.ranks
    return {
        **measures(
            key,
            lambda pairs: learner.choices(state.shared, own, division.judged[pairs]),
            lambda pairs: learner.utilities(state.shared, own, division.judged[pairs]),
            division.known,
            division.new,
            division.joint,
        ),
        "decided": jnp.sum(ranks[:, 0] != ranks[:, 1]).astype(float),
    }
