"""How a round's queries come about: `(key, shared, own[M], store) -> queries[B]`.

Three builders give such a function: from candidates and an arm that chooses the responses of one
query, from candidates and a choice for all queries together, and from whole queries and an arm that
chooses among them. Any other will do as well.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from shatter.training.store import Store
from shatter.types import Array, Key, Params, Query

Propose = Callable[[Key, Params, Params, Store], Query]
"""`(key, shared, own[M], store) -> queries[B]`, from the members and the comparisons so far."""


def pair_proposer(
    candidates: Callable[[Key, Params, Params], Query],
    score: Callable[[Params, Params, Query], Array],
    explore: Callable[..., Array],
    *,
    num_queries: int = 8,
    num_responses: int = 2,
) -> Propose:
    """Proposes queries whose responses, pairs by default, an arm chooses among candidates.

    Every query has candidates of its own, and is chosen without regard to the others and to the
    store. A candidate that the arm repeats leaves its slot empty.

    Args:
      candidates: `(key, shared, own[M]) -> candidates[N]`, responses to one prompt as one `Query`;
        see `shatter.exploration`.
      score: `(shared, own_of_one, candidates) -> log_probs[...]`, one member's log-prob of each
        candidate, nats, for candidates with any leading axes.
      explore: `(key, log_probs[M, N], *, valid, num_responses) -> indices[K]`, a
        `shatter.exploration.PairArm`.
      num_queries: B, queries a round.
      num_responses: K, responses a query.

    Returns:
      `(key, shared, own[M], store) -> queries[B]`.
    """

    def choose(key: Key, shared: Params, own: Params, store: Store, pools: Query) -> Array:
        del store
        log_probs = jax.vmap(score, in_axes=(None, 0, None))(shared, own, pools)
        return jax.vmap(
            lambda key, log_probs, valid: explore(
                key, log_probs, valid=valid, num_responses=num_responses
            ),
            in_axes=(0, 1, 0),
        )(jax.random.split(key, num_queries), log_probs, pools.valid)

    return batch_proposer(candidates, choose, num_queries=num_queries)


def batch_proposer(
    candidates: Callable[[Key, Params, Params], Query],
    choose: Callable[[Key, Params, Params, Store, Query], Array],
    *,
    num_queries: int = 8,
) -> Propose:
    """Proposes queries whose responses are chosen for all of them together.

    Every query has candidates of its own. A candidate that is repeated leaves its slot empty.

    Args:
      candidates: `(key, shared, own[M]) -> candidates[N]`, as in `pair_proposer`.
      choose: `(key, shared, own[M], store, candidates[B, N]) -> indices[B, K]`, for example by
        `shatter.exploration.v_optimal_batch`.
      num_queries: B, queries a round.

    Returns:
      `(key, shared, own[M], store) -> queries[B]`.
    """

    def propose(key: Key, shared: Params, own: Params, store: Store) -> Query:
        candidate_key, explore_key = jax.random.split(key)
        pools = jax.vmap(candidates, in_axes=(0, None, None))(
            jax.random.split(candidate_key, num_queries), shared, own
        )
        indices = choose(explore_key, shared, own, store, pools)
        return jax.vmap(take_responses)(pools, indices)

    return propose


def query_proposer(
    queries: Callable[[Key, Params, Params, Store], Query],
    utilities: Callable[[Params, Params, Query], Array],
    explore: Callable[..., Array],
    *,
    num_queries: int = 8,
) -> Propose:
    """Proposes whole queries that an arm chooses among those that can be asked.

    Args:
      queries: `(key, shared, own[M], store) -> queries[Q]`. A query with fewer than two valid
        responses is not chosen: leave out by `valid` what was asked before, see `asked`.
      utilities: `(shared, own[M], queries[Q]) -> [M, Q, K]`, each member's utility of each
        response, nats; from a score of one member, `jax.vmap(score, in_axes=(None, 0, None))`.
      explore: `(key, log_probs[M, Q, K], *, valid, num_queries) -> indices[B]`, a
        `shatter.exploration.QueryArm`.
      num_queries: B, queries a round.

    Returns:
      `(key, shared, own[M], store) -> queries[B]`.
    """

    def propose(key: Key, shared: Params, own: Params, store: Store) -> Query:
        query_key, explore_key = jax.random.split(key)
        pool = queries(query_key, shared, own, store)
        log_probs = utilities(shared, own, pool)
        indices = explore(explore_key, log_probs, valid=pool.valid, num_queries=num_queries)
        return jax.tree.map(lambda leaf: leaf[indices], pool)

    return propose


def asked(store: Store, num_queries: int) -> Array:
    """Marks the queries of a pool that the store has a comparison of.

    Args:
      store: comparisons whose `query.prompt_id` is the query's number in the pool.
      num_queries: Q, the size of the pool.

    Returns:
      bool `[Q]`. A comparison that made room for others in a full store is forgotten here too.
    """
    numbers = store.comparisons.query.prompt_id
    is_in_use = jnp.arange(numbers.shape[0]) < store.size
    return jnp.zeros(num_queries, bool).at[numbers].max(is_in_use)


def take_responses(candidates: Query, indices: Array) -> Query:
    """Returns the chosen candidates as a query; a repeated one leaves its slot empty.

    Args:
      candidates: N responses.
      indices: int `[K]`, among them.

    Returns:
      The query of K slots.
    """
    is_first = jnp.argmax(indices[:, None] == indices[None, :], axis=1) == jnp.arange(len(indices))
    return Query(
        candidates.prompt_id,
        candidates.tokens[indices],
        candidates.mask[indices],
        candidates.item_ids[indices],
        candidates.valid[indices] & is_first,
    )
