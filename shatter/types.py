"""Array aliases, the containers that pass between raters, arms and learners, and `Ensemble`.

Axes, everywhere in shatter: S seeds, M members, B batch, K responses in a query, N candidates,
D documents of an enumerated space, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
Params = Any
"""A pytree of arrays."""
Metrics = dict[str, jax.Array]
MEMBER_AXIS = "members"
"""Name of the axis over which members are vmapped where they are trained."""


class Query(NamedTuple):
    """K responses to one prompt: what is shown to a person, or N candidates to choose from.

    Attributes:
      prompt_id: int `[]`, which prompt, or which query of a pool of whole queries; recorded raters
        look people up by it.
      tokens: int `[K, T]`, the documents: prompt, response, padding; of length T = 1 and without
        meaning where items are known by their numbers alone (`item_query`).
      mask: bool `[K, T]`, true on the response's tokens, EOS included.
      item_ids: int `[K]`, which item of the prompt's pool each response is; -1 where there is no
        pool.
      valid: bool `[K]`, false on an empty slot, and on a candidate that may not be chosen.
    """

    prompt_id: Array
    tokens: Array
    mask: Array
    item_ids: Array
    valid: Array


def item_query(item_ids: Array, *, prompt_id: Array | int = 0, valid: Array | None = None) -> Query:
    """Returns queries about items that are known by their numbers alone, without documents.

    Args:
      item_ids: int `[..., K]`; below 0 = an empty slot.
      prompt_id: int `[...]`, or one for all.
      valid: bool `[..., K]`, false on empty slots; where None, `item_ids >= 0`.

    Returns:
      Queries with the leading axes of `item_ids`. The ids of empty slots are at least 0, so that a
      table can be read at them.
    """
    item_ids = jnp.asarray(item_ids)
    tokens = jnp.zeros((*item_ids.shape, 1), int)
    return Query(
        prompt_id=jnp.broadcast_to(jnp.asarray(prompt_id, int), item_ids.shape[:-1]),
        tokens=tokens,
        mask=tokens > 0,
        item_ids=jnp.maximum(item_ids, 0),
        valid=item_ids >= 0 if valid is None else valid,
    )


class Comparison(NamedTuple):
    """A person's answer to a query.

    Attributes:
      query: the query that was shown.
      ranks: int `[K]`, smaller is better; equal ranks are an unresolved order; < 0 = not shown.
      weight: float `[]`, how much the answer counts (1, or a survey weight).
    """

    query: Query
    ranks: Array
    weight: Array


Rater = Callable[[Key, Query], Array]
"""`(key, query) -> ranks[K]`: a population that answers one query."""


def _flat_prior(own: Params, anchor: Params) -> Array:
    del own, anchor
    return jnp.zeros(())


def _unit_weights(key: Key, shape: tuple[int, ...]) -> Array:
    del key
    return jnp.ones((1, *shape))


def _own_gradient(gradient: Params) -> Params:
    return gradient


def _at_anchor(anchor: Params) -> Params:
    return anchor


class Ensemble(NamedTuple):
    """The protocol of ensembles: functions from an index to a plausible language model.

    A function of one member is lifted by vmap with in_axes (None, 0, None). Heads and epinets go by
    the same protocol: their inputs are features of a frozen model, `[..., D]`, and their outputs
    scores `[...]`, utilities in nats.

    Attributes:
      init: `(key) -> (shared, own[M])`: what all members hold in common and never train, and what
        each has of its own, with a leading axis M on every leaf.
      apply: `(shared, own_of_one, tokens, *, valid=None) -> logits`, one member's language model.
      penalty: `(own_of_one, anchor_of_one) -> []`, minus the member's log prior density up to a
        constant, nats; the anchor is what `init` drew. By default 0, a flat prior.
      observation_weights: `(key, shape) -> [M, *shape]`, each member's own weight on every
        observation, or `[1, *shape]`, the same for all. By default 1.
      combine_gradients: `(gradient of one member) -> gradient`, applied under a vmap over the axis
        `MEMBER_AXIS`, between the gradient and the optimiser: for members that hold parameters in
        common that are trained. By default the member's own.
      start: `(anchor_of_one) -> own_of_one`, where a member's training starts. By default at its
        anchor, what `init` drew; the anchor stays what it is wherever the member starts.
    """

    init: Callable[[Key], tuple[Params, Params]]
    apply: Callable[..., Array]
    penalty: Callable[[Params, Params], Array] = _flat_prior
    observation_weights: Callable[[Key, tuple[int, ...]], Array] = _unit_weights
    combine_gradients: Callable[[Params], Params] = _own_gradient
    start: Callable[[Params], Params] = _at_anchor


__all__ = [
    "MEMBER_AXIS",
    "Array",
    "Comparison",
    "Ensemble",
    "Key",
    "Metrics",
    "Params",
    "Query",
    "Rater",
    "item_query",
]
