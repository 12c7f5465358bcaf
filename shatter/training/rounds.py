"""Rounds of an interaction with a pure rater in place of people, as one scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from shatter.training.interaction import Interaction
from shatter.types import Array, Comparison, Key, Metrics, Query, Rater


def ask(rater: Rater, key: Key, queries: Query) -> Comparison:
    """Puts each query to a new person of a population.

    Args:
      rater: `(key, query) -> ranks[K]`.
      key: a typed key.
      queries: leaves `[B, ...]`.

    Returns:
      comparisons with leaves `[B, ...]`, of weight 1.
    """
    num_queries = queries.prompt_id.shape[0]
    ranks = jax.vmap(rater)(jax.random.split(key, num_queries), queries)
    return Comparison(queries, ranks, jnp.ones(num_queries))


def ask_together(rater: Rater, key: Key, queries: Query) -> Comparison:
    """Puts all queries of a round to a rater that answers them together.

    Args:
      rater: `(key, queries[B]) -> ranks[B, K]`, for example with one draw for all queries.
      key: a typed key.
      queries: leaves `[B, ...]`.

    Returns:
      comparisons with leaves `[B, ...]`, of weight 1.
    """
    return Comparison(queries, rater(key, queries), jnp.ones(queries.prompt_id.shape[0]))


def run_rounds(
    process: Interaction,
    rater: Rater,
    evaluate: Callable[[Any], Metrics],
    state: Any,
    key: Key,
    *,
    num_rounds: int,
    first_round: Array | int = 0,
    ask: Callable[[Rater, Key, Query], Comparison] = ask,
) -> tuple[Any, Metrics]:
    """Scans rounds of propose, ask, learn, evaluate.

    Round t draws from `fold_in(key, t)`, so that a run that is cut into chunks (pass the state on
    and `first_round`) gives the same numbers to the bit as the uncut one.

    Args:
      process: the halves.
      rater: `(key, query) -> ranks[K]`.
      evaluate: `(state) -> metrics`, after every round.
      state: where to begin.
      key: a typed key, the same for all chunks.
      num_rounds: how many rounds; static.
      first_round: number of the first round.
      ask: how the rater is asked, `(rater, key, queries[B]) -> comparisons[B]`: `ask`,
        `ask_together`, or your own where answers have weights.

    Returns:
      the state after the last round, and metrics with leaves `[num_rounds, ...]`.
    """

    def one_round(state: Any, t: Array) -> tuple[Any, Metrics]:
        propose_key, ask_key = jax.random.split(jax.random.fold_in(key, t))
        queries = process.propose(state, propose_key)
        state, learned = process.learn(state, ask(rater, ask_key, queries))
        return state, {**learned, **evaluate(state)}

    return jax.lax.scan(one_round, state, first_round + jnp.arange(num_rounds))
