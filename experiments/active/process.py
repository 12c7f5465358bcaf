"""The process: who chooses what to ask, how answers come, and what is measured."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.active.config import Setting
from experiments.active.splits import Division, Numbers, Votes
from experiments.common.chunks import Chunk, Process
from shatter import ensembles, evaluation, exploration, training
from shatter.cli.common.frozen import Table
from shatter.cli.common.learners import Learner, make_learner, table_comparisons
from shatter.models import TransformerConfig
from shatter.numerics import LOG_ZERO
from shatter.training import Store
from shatter.training.store import empty_store
from shatter.types import Array, Comparison, Key, Metrics, Params

BINS = 10  # of the calibration
JOINT_DRAWS = 256
RANKS = ((1, 2), (2, 1), (1, 1))  # of the answers: first, second, neither


class Arm(NamedTuple):
    """How queries are chosen.

    Attributes:
      by: whose utilities it sees: the "members'", the "frozen" model's, or "none".
      explore: an arm of `shatter.exploration` for whole queries.
    """

    by: str
    explore: Callable[..., Array]


ARMS = {
    "random": Arm("none", exploration.uniform_queries),
    "passive": Arm("frozen", functools.partial(exploration.boltzmann_queries, temperature=1.0)),
    "boltzmann": Arm("members", exploration.boltzmann_queries),
    "thompson": Arm("members", exploration.thompson_queries),
    "double_thompson": Arm("members", exploration.double_thompson_queries),
    "infomax": Arm("members", exploration.infomax_queries),
    "variance": Arm("members", exploration.variance_queries),
    "joint_infomax": Arm("members", exploration.joint_infomax_queries),
}


class Problem(NamedTuple):
    """The input of a seed.

    Attributes:
      key: a typed key.
      table: what is known of the N texts; empty in the state, which has it in its members.
      log_prob: `[N]`, the frozen model's mean log-prob of a token, nats.
      division: of the data.
      base: parameters of the frozen model that adapters are on; else empty.
      prior_scale: `[]`, the ensemble's.
    """

    key: Key
    table: Any
    log_prob: Numbers
    division: Division
    base: Params
    prior_scale: Numbers


class State(NamedTuple):
    """What a run carries.

    Attributes:
      problem: without its table.
      members: the members; `shared` is `(the ensemble's shared, table)`.
      store: the comparisons so far.
      asked: bool `[P]`, which pairs of the pool were asked.
    """

    problem: Problem
    members: training.Members
    store: Store
    asked: Array


def make_process(
    setting: Setting, arm: str, transformer: TransformerConfig | None = None
) -> Process:
    """The run of one seed of one arm.

    Args:
      setting: what learns, and how much is asked.
      arm: a name in `ARMS`.
      transformer: of the frozen model, where adapters learn.

    Returns:
      `start` and `rounds`. All arms start from the same members.
    """
    return Process(_start(setting, transformer), _rounds(setting, ARMS[arm], transformer))


@functools.cache
def _start(
    setting: Setting, transformer: TransformerConfig | None
) -> Callable[[Problem], tuple[State, Metrics]]:
    def start(problem: Problem) -> tuple[State, Metrics]:
        learner = _learner(setting, transformer, problem, problem.table)
        init_key, learn_key = jax.random.split(jax.random.fold_in(problem.key, 0))
        shared, own = learner.ensemble.init(init_key)
        members = learner.members.init((shared, problem.table), own, learn_key)
        blank = jax.tree.map(
            lambda leaf: leaf[0], _comparisons(jnp.zeros((1, 2), int), jnp.zeros(1, int))
        )
        store = empty_store(blank, num_members=setting.num_members, capacity=setting.budget)
        asked = jnp.zeros(problem.division.pool.votes.shape[0], bool)
        state = State(problem._replace(table=()), members, store, asked)
        return state, _evaluate(learner, state)

    return start


def _rounds(
    setting: Setting, arm: Arm, transformer: TransformerConfig | None
) -> Callable[[State, Array, Chunk], tuple[State, Metrics]]:
    def rounds(state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
        learner = _learner(setting, transformer, state.problem, state.members.shared[1])

        def one_round(state: State, number: Array) -> tuple[State, Metrics]:
            key = jax.random.fold_in(jax.random.fold_in(state.problem.key, 1), number)
            ask_key, answer_key, weight_key, learn_key = jax.random.split(key, 4)
            queries = _choose(ask_key, setting, arm, learner, state, chunk.num_queries)
            comparisons = answers(answer_key, state.problem.division.pool, queries)
            weights = learner.ensemble.observation_weights(weight_key, queries.shape)
            store = training.add_comparisons(state.store, comparisons, weights)
            members, _ = learner.members.learn(state.members, store, learn_key)
            asked = state.asked.at[queries].set(True)
            state = State(state.problem, members, store, asked)
            return state, _evaluate(learner, state)

        numbers = first_round + jnp.arange(chunk.num_rounds)
        return jax.lax.scan(one_round, state, numbers)

    return rounds


def _learner(
    setting: Setting, transformer: TransformerConfig | None, problem: Problem, table: Table
) -> Learner:
    width = table["features"].shape[-1] if "features" in table else 0
    return make_learner(
        setting.learner,
        transformer,
        problem.base,
        num_features=width,
        prior_scale=problem.prior_scale,
    )


def _choose(
    key: Key, setting: Setting, arm: Arm, learner: Learner, state: State, num_queries: int
) -> Array:
    """Queries `[B]`, numbers of pairs of the pool that were not asked."""
    candidate_key, explore_key = jax.random.split(key)
    pool = state.problem.division.pool
    free = ~state.asked & (jnp.sum(pool.votes, axis=-1) > 0)
    order = jnp.argsort(jnp.where(free, jax.random.uniform(candidate_key, free.shape), 2.0))
    candidates = order[: min(setting.num_candidates, free.size)]
    items = pool.items[candidates]
    if arm.by == "members":
        members = state.members
        log_probs = learner.utilities(members.shared, members.states.params, items)
    elif arm.by == "frozen":
        log_probs = state.problem.log_prob[items][None]
    else:
        log_probs = jnp.zeros((1, *items.shape))
    valid = jnp.broadcast_to(free[candidates][:, None], items.shape)
    explore = arm.explore
    if explore is exploration.boltzmann_queries:
        explore = functools.partial(explore, temperature=setting.config.boltzmann_temperature)
    if explore is exploration.joint_infomax_queries:
        explore = functools.partial(explore, num_outcomes=setting.config.num_outcomes)
    return candidates[explore(explore_key, log_probs, valid=valid, num_queries=num_queries)]


def answers(key: Key, pool: Votes, queries: Array) -> Comparison:
    """One vote of those on each query, drawn at random."""
    votes = pool.votes[queries]
    log_votes = jnp.where(votes > 0, jnp.log(jnp.where(votes > 0, votes, 1.0)), LOG_ZERO)
    return _comparisons(pool.items[queries], jax.random.categorical(key, log_votes))


def _comparisons(items: Array, answers: Array) -> Comparison:
    return table_comparisons(items, jnp.asarray(RANKS)[answers], jnp.ones(len(items)))


def _evaluate(learner: Learner, state: State) -> Metrics:
    division = state.problem.division
    utilities = learner.utilities(
        state.members.shared, state.members.states.params, division.judged
    )
    key = jax.random.fold_in(state.problem.key, 2)
    ranks = state.store.comparisons.ranks
    return {
        **measures(key, utilities, division.known, division.new, division.joint),
        "decided": jnp.sum(ranks[:, 0] != ranks[:, 1]).astype(float),
    }


def measures(key: Key, utilities: Array, known: Votes, new: Votes, joint: Votes) -> Metrics:
    """How the members judge held-out pairs.

    Args:
      key: draws the joint labels; the same for all rounds and arms.
      utilities: `[M, E]`, of the texts, nats.
      known: pairs with votes.
      new: likewise.
      joint: likewise, each with votes that decide.

    Returns:
      Of known and of new, by the mixture of the members, per vote that decides: log_loss (nats),
      calibration_error (`BINS` equal bins of P(first)); accuracy, over pairs with a majority.
      Of new also the bins, `[BINS]`: predicted (sum of P(first)), observed (votes for the first)
      and count (votes). joint_log_loss of 10 labels of 2 pairs, nats; disagreement, nats.
    """
    found = {}
    for name, part in {"known": known, "new": new}.items():
        for measure, value in _marginal(utilities, part).items():
            if name == "new" or value.ndim == 0:
                found[f"{name}_{measure}"] = value
    members = utilities[:, joint.items]
    shares = joint.votes[:, :2] / jnp.sum(joint.votes[:, :2], axis=-1, keepdims=True)
    law = jnp.where(shares > 0, jnp.log(jnp.where(shares > 0, shares, 1.0)), LOG_ZERO)
    draws = jax.vmap(lambda key: evaluation.dyadic_joint_log_loss(key, members, law))(
        jax.random.split(key, JOINT_DRAWS)
    )
    return {
        **found,
        "joint_log_loss": jnp.mean(draws),
        "disagreement": evaluation.disagreement(members),
    }


def _marginal(utilities: Array, part: Votes) -> Metrics:
    first, second = jnp.moveaxis(part.votes[:, :2], -1, 0)
    decided = first + second
    gaps = utilities[:, part.items[:, 0]] - utilities[:, part.items[:, 1]]
    log_p = ensembles.mixture_log_probs(jax.nn.log_sigmoid(gaps))
    log_q = ensembles.mixture_log_probs(jax.nn.log_sigmoid(-gaps))
    p, num_votes = jnp.exp(log_p), jnp.maximum(jnp.sum(decided), 1.0)
    has_majority = first != second
    is_right = 0.5 + 0.5 * jnp.sign(log_p - log_q) * jnp.sign(first - second)
    bins = jnp.minimum((p * BINS).astype(int), BINS - 1)
    empty = jnp.zeros(BINS)
    predicted, observed = empty.at[bins].add(decided * p), empty.at[bins].add(first)
    return {
        "log_loss": -jnp.sum(first * log_p + second * log_q) / num_votes,
        "accuracy": jnp.sum(has_majority * is_right) / jnp.maximum(jnp.sum(has_majority), 1),
        "calibration_error": jnp.sum(jnp.abs(predicted - observed)) / num_votes,
        "predicted": predicted,
        "observed": observed,
        "count": empty.at[bins].add(decided),
    }
