"""Array aliases and the containers that pass between raters, explorers and learners.

Axes, everywhere in shatter: S seeds, M members, B batch, K responses in a query, N candidates,
D documents of an enumerated space, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Any
"""A pytree of arrays."""
Metrics = dict[str, jax.Array]
MEMBER_AXIS = "members"
"""Name of the axis over which members are vmapped where they are trained."""


class Query(NamedTuple):
    """K responses to one prompt, to be shown to a person.

    Attributes:
      prompt_id: int `[]`, which prompt; recorded raters look people up by it.
      tokens: int `[K, T]`, the documents: prompt, response, padding.
      mask: bool `[K, T]`, true on the response's tokens, EOS included.
      item_ids: int `[K]`, which item of the prompt's pool each response is; -1 where there is no
        pool.
      valid: bool `[K]`, false on an empty slot.
    """

    prompt_id: Array
    tokens: Array
    mask: Array
    item_ids: Array
    valid: Array


class Comparison(NamedTuple):
    """What a person said of a query.

    Attributes:
      query: the query that was shown.
      ranks: int `[K]`, smaller is better; equal ranks are an unresolved order; < 0 = not shown.
      weight: float `[]`, how much the answer counts (1, or a survey weight).
      rater: int `[]`, who answered; -1 = unknown.
      group: int `[]`, the rater's group; -1 = unknown.
    """

    query: Query
    ranks: Array
    weight: Array
    rater: Array
    group: Array


Rater = Callable[[Key, Query], Array]
"""`(key, query) -> ranks[K]`: a population that answers one query."""

__all__ = ["MEMBER_AXIS", "Array", "Comparison", "Key", "Metrics", "Params", "Query", "Rater"]
