"""The interaction, rounds of propose, ask, learn and evaluate, as two pure halves.

`propose` ends where a person is asked, `learn` begins where the answer is in. With a pure rater
between them the rounds are one scan (`run_rounds`); a live person sits between the jitted halves.
Everything is written for one seed, with a vmap over members inside; seeds are lifted by a vmap
outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax

from shatter.training.members import Members, members_learner
from shatter.training.proposers import Propose
from shatter.training.step import TrainState
from shatter.training.store import Store, add_comparisons, empty_store
from shatter.types import Array, Comparison, Ensemble, Key, Metrics, Params, Query


class InteractionState(NamedTuple):
    """The state that an interaction carries from round to round.

    Attributes:
      shared: what the members hold in common.
      anchors: what `ensemble.init` drew of each member, `[M]` on every leaf.
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
    """The halves of an interaction, and its start.

    The state is an `InteractionState`, or any pytree of your own where the halves are: `run_rounds`
    passes it on unseen.

    Attributes:
      init: `(key) -> state`.
      propose: `(state, key) -> queries[B]`.
      learn: `(state, comparisons[B], keys=None) -> (state, metrics)`. The two keys draw the
        members' weights on the new comparisons, and the batches; by default they are split from
        `fold_in(state.key, state.step)`.
    """

    init: Callable[[Key], Any]
    propose: Callable[[Any, Key], Query]
    learn: Callable[..., tuple[Any, Metrics]]


def interaction(
    ensemble: Ensemble,
    *,
    propose: Propose,
    score: Callable[[Params, Params, Query], Array],
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    query: Query | None = None,
    capacity: int = 1024,
    num_steps: int = 4,
    batch_size: int | None = None,
    regulariser: Callable[[Params, Params, Key], Array] | None = None,
    members_at_once: int | None = None,
) -> Interaction:
    """Puts an ensemble, a proposer of queries and a loss together.

    Members learn as `members_learner` says, from all comparisons so far. For weights of your own on
    the comparisons, pass `ensemble._replace(observation_weights=...)`.

    Args:
      ensemble: the ensemble.
      propose: `(key, shared, own[M], store) -> queries[B]`, of `pair_proposer`, `query_proposer` or
        your own.
      score: `(shared, own_of_one, query) -> log_probs[..., K]`, one member's log-prob of each
        response, nats, for queries with any leading axes.
      loss: `(response_log_probs[..., K], ranks[..., K]) -> [...]`, for example
        `shatter.losses.ilhf_ranking_loss`.
      optimizer: an optax optimiser; every member has its own state.
      query: one query, or its shapes and types, by which the store is laid out. Needed only where
        `propose` reads the store; else taken from what `propose` returns.
      capacity: comparisons the store holds; the oldest make room.
      num_steps: steps of the optimiser a round.
      batch_size: comparisons a step, drawn from the store; None = all of them.
      regulariser: `(shared, own_of_one, key) -> []`, lambda D, for the data set; none if None.
      members_at_once: as in `members_learner`.

    Returns:
      `init`, `propose` and `learn`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from shatter import documents, ensembles, exploration, losses, models, training
      >>> from shatter.types import Comparison
      >>> lm = models.tabular(vocab_size=3, max_length=2)
      >>> space = documents.enumerate_documents(vocab_size=3, max_length=2)
      >>> score = lambda shared, own, query: documents.document_log_probs(lm, own, *space)[
      ...     query.item_ids
      ... ]
      >>> params = lm.init(jax.random.key(0))
      >>> process = training.interaction(
      ...     ensembles.anchored(lm, params, num_members=4, prior_scale=1.0),
      ...     propose=training.pair_proposer(
      ...         lambda key, shared, own: exploration.pool_candidates(*space),
      ...         score,
      ...         exploration.thompson,
      ...         num_queries=2,
      ...     ),
      ...     score=score,
      ...     loss=losses.ilhf_ranking_loss,
      ...     optimizer=optax.adam(0.1),
      ... )
      >>> state = process.init(jax.random.key(1))
      >>> queries = process.propose(state, jax.random.key(2))
      >>> queries.tokens.shape  # queries, responses, tokens
      (2, 2, 3)
      >>> ranks = jnp.array([[1, 2], [2, 1]])  # a person's answers: 1 is better
      >>> state, metrics = process.learn(state, Comparison(queries, ranks, jnp.ones(2)))
      >>> int(state.store.size)
      2
    """
    learner = members_learner(
        ensemble,
        score=score,
        loss=loss,
        optimizer=optimizer,
        num_steps=num_steps,
        batch_size=batch_size,
        regulariser=regulariser,
        members_at_once=members_at_once,
    )

    def init(key: Key) -> InteractionState:
        ensemble_key, member_key, query_key, state_key = jax.random.split(key, 4)
        shared, own = ensemble.init(ensemble_key)
        shown = _shapes(propose, query_key, shared, own) if query is None else query
        store = empty_store(
            _blank_comparison(shown),
            num_members=jax.tree.leaves(own)[0].shape[0],
            capacity=capacity,
        )
        members = learner.init(shared, own, member_key)
        return InteractionState(*members, store, state_key, jnp.zeros((), int))

    def propose_queries(state: InteractionState, key: Key) -> Query:
        return propose(key, state.shared, state.members.params, state.store)

    def learn(
        state: InteractionState, comparisons: Comparison, keys: tuple[Key, Key] | None = None
    ) -> tuple[InteractionState, Metrics]:
        weight_key, batch_key = (
            jax.random.split(jax.random.fold_in(state.key, state.step)) if keys is None else keys
        )
        weights = ensemble.observation_weights(weight_key, comparisons.weight.shape)
        store = add_comparisons(state.store, comparisons, weights)
        members = Members(state.shared, state.anchors, state.members)
        members, metrics = learner.learn(members, store, batch_key)
        state = state._replace(members=members.states, store=store, step=state.step + 1)
        return state, metrics

    return Interaction(init, propose_queries, learn)


class _UnknownStore:
    """Stands for the store while its layout is not known."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError(
            f"`propose` reads `store.{name}`, so that the store's layout cannot be taken from its "
            "result: pass `query`, one query or its shapes, to `training.interaction`"
        )


def _shapes(propose: Propose, key: Key, shared: Params, own: Params) -> Query:
    """Returns the shapes and types of one query of a proposer that does not read the store."""
    store: Any = _UnknownStore()
    propose_blindly = lambda key, shared, own: propose(key, shared, own, store)
    queries = jax.eval_shape(propose_blindly, key, shared, own)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), queries)


def _blank_comparison(query: Query) -> Any:
    """Returns the shapes and types of a comparison about a query."""
    return jax.eval_shape(
        lambda query: Comparison(query, jnp.zeros(query.valid.shape, int), jnp.ones(())), query
    )
