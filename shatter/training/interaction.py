"""The interaction: generate -> explore -> rate -> learn -> evaluate, as two pure halves.

`propose` ends where a person is asked, `learn` begins where the answer is in. A pure rater goes
between them in one scan (`run_rounds`); a live person sits between the jitted halves. Written for
one seed, vmapped over members inside; vmap over seeds outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from shatter.training.members import Members, members_learner
from shatter.training.step import TrainState
from shatter.training.store import Store, add_comparisons, empty_store
from shatter.types import Array, Comparison, Key, Metrics, Params, Query, Rater


class InteractionState(NamedTuple):
    """What an interaction carries.

    Attributes:
      shared: what the members hold in common.
      anchors: what each member was at the start, `[M]` on every leaf.
      members: the members' learners, `[M]` on every leaf; `members.params` are the members.
      store: the comparisons so far.
      key: a typed key; call t of `learn` uses `fold_in(key, t)`.
      step: int `[]`, number of calls of `learn`.
    """

    shared: Params
    anchors: Params
    members: TrainState
    store: Store
    key: Key
    step: Array


class Interaction(NamedTuple):
    """The halves of an interaction.

    Attributes:
      init: `(key) -> state`.
      propose: `(state, key) -> (state, queries[B])`.
      learn: `(state, comparisons[B]) -> (state, metrics)`.
    """

    init: Callable[[Key], InteractionState]
    propose: Callable[[InteractionState, Key], tuple[InteractionState, Query]]
    learn: Callable[[InteractionState, Comparison], tuple[InteractionState, Metrics]]


def interaction(
    ensemble: Any,
    *,
    candidates: Callable[[Key, Params, Params], Any],
    score: Callable[[Params, Params, Any], Array],
    explore: Callable[..., Array],
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    num_queries: int = 8,
    num_responses: int = 2,
    capacity: int = 1024,
    num_steps: int = 4,
    batch_size: int | None = None,
    regulariser: Callable[[Params, Params, Key], Array] | None = None,
) -> Interaction:
    """Puts an ensemble, a source of candidates, an explorer and a loss together.

    Members learn as `members_learner` says, from all comparisons so far.

    Args:
      ensemble: an ensemble by the protocol of `shatter.ensembles.Ensemble`.
      candidates: `(key, shared, own[M]) -> Candidates`, responses to one prompt, made anew for
        every query; see `shatter.exploration`.
      score: `(shared, own_of_one, responses) -> log_probs[...]`, one member's log-prob of each
        response, nats; `responses` is a `Candidates` or a `Query`, with any leading axes.
      explore: an arm of `shatter.exploration`.
      loss: `(response_log_probs[..., K], ranks[..., K]) -> [...]`, for example
        `shatter.losses.ilhf_ranking_loss`.
      optimizer: an optax optimiser; every member has its own state.
      num_queries: B, queries a round.
      num_responses: K.
      capacity: comparisons the store holds; the oldest make room.
      num_steps: steps of the optimiser a round.
      batch_size: comparisons a step, drawn from the store; None = all of them.
      regulariser: `(shared, own_of_one, key) -> []`, lambda D, for the data set; none if None.

    Returns:
      `init`, `propose` and `learn`.
    """
    learner = members_learner(
        ensemble,
        score=score,
        loss=loss,
        optimizer=optimizer,
        num_steps=num_steps,
        batch_size=batch_size,
        regulariser=regulariser,
    )

    def init(key: Key) -> InteractionState:
        ensemble_key, member_key, candidate_key, state_key = jax.random.split(key, 4)
        shared, own = ensemble.init(ensemble_key)
        pool = jax.eval_shape(candidates, candidate_key, shared, own)
        store = empty_store(
            _blank_comparison(pool, num_responses),
            num_members=jax.tree.leaves(own)[0].shape[0],
            capacity=capacity,
        )
        members = learner.init(shared, own, member_key)
        return InteractionState(*members, store, state_key, jnp.zeros((), int))

    def propose(state: InteractionState, key: Key) -> tuple[InteractionState, Query]:
        candidate_key, explore_key = jax.random.split(key)
        own = state.members.params
        pools = jax.vmap(candidates, in_axes=(0, None, None))(
            jax.random.split(candidate_key, num_queries), state.shared, own
        )
        log_probs = jax.vmap(score, in_axes=(None, 0, None))(state.shared, own, pools)
        indices = jax.vmap(
            lambda key, log_probs, valid: explore(
                key, log_probs, valid=valid, num_responses=num_responses
            ),
            in_axes=(0, 1, 0),
        )(jax.random.split(explore_key, num_queries), log_probs, pools.valid)
        return state, jax.vmap(_query)(pools, indices)

    def learn(state: InteractionState, comparisons: Comparison) -> tuple[InteractionState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        weight_key, batch_key = jax.random.split(key)
        weights = ensemble.observation_weights(weight_key, comparisons.weight.shape)
        store = add_comparisons(state.store, comparisons, weights)
        members = Members(state.shared, state.anchors, state.members)
        members, metrics = learner.learn(members, store, batch_key)
        state = state._replace(members=members.states, store=store, step=state.step + 1)
        return state, metrics

    return Interaction(init, propose, learn)


def ask(rater: Rater, key: Key, queries: Query) -> Comparison:
    """Puts each query to a fresh person of a pure rater.

    Args:
      rater: `(key, query) -> ranks[K]`.
      key: a typed key.
      queries: leaves `[B, ...]`.

    Returns:
      comparisons with leaves `[B, ...]`, of weight 1.
    """
    num_queries = queries.prompt_id.shape[0]
    ranks = jax.vmap(rater)(jax.random.split(key, num_queries), queries)
    unknown = jnp.full(num_queries, -1)
    return Comparison(queries, ranks, jnp.ones(num_queries), unknown, unknown)


def run_rounds(
    process: Interaction,
    rater: Rater,
    evaluate: Callable[[InteractionState], Metrics],
    state: InteractionState,
    key: Key,
    *,
    num_rounds: int,
    first_round: Array | int = 0,
) -> tuple[InteractionState, Metrics]:
    """Scans rounds of propose, ask, learn, evaluate.

    Round t draws from `fold_in(key, t)`, so a run that is cut into chunks (pass the state on and
    `first_round`) gives the same numbers to the bit as the uncut one.

    Args:
      process: the halves.
      rater: `(key, query) -> ranks[K]`.
      evaluate: `(state) -> metrics`, after every round.
      state: where to begin.
      key: a typed key, the same for all chunks.
      num_rounds: how many rounds; static.
      first_round: number of the first round.

    Returns:
      the state after the last round, and metrics with leaves `[num_rounds, ...]`.
    """

    def one_round(state: InteractionState, t: Array) -> tuple[InteractionState, Metrics]:
        propose_key, ask_key = jax.random.split(jax.random.fold_in(key, t))
        state, queries = process.propose(state, propose_key)
        state, learned = process.learn(state, ask(rater, ask_key, queries))
        return state, {**learned, **evaluate(state)}

    return jax.lax.scan(one_round, state, first_round + jnp.arange(num_rounds))


def _query(pool: Any, indices: Array) -> Query:
    """The chosen candidates as a query; a repeated one leaves its slot empty."""
    is_first = jnp.argmax(indices[:, None] == indices[None, :], axis=1) == jnp.arange(len(indices))
    return Query(
        pool.prompt_id,
        pool.tokens[indices],
        pool.mask[indices],
        pool.item_ids[indices],
        pool.valid[indices] & is_first,
    )


def _blank_comparison(pool: Any, num_responses: int) -> Any:
    """Shapes and types of one comparison about a pool's candidates."""

    def comparison(pool: Any) -> Comparison:
        query = _query(pool, jnp.zeros(num_responses, int))
        unknown = jnp.asarray(-1)
        return Comparison(query, query.valid - 1, jnp.ones(()), unknown, unknown)

    return jax.eval_shape(comparison, pool)
