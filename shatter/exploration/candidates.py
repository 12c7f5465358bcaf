"""Where candidates come from, apart from how a query is chosen among them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import at_least_float32
from shatter.types import Array, Key


class Candidates(NamedTuple):
    """Responses to one prompt among which a query is chosen.

    Attributes:
      prompt_id: int `[]`, which prompt.
      tokens: int `[N, T]`, the documents.
      mask: bool `[N, T]`, true on the response's tokens.
      item_ids: int `[N]`, which item of the prompt's pool each is; -1 where there is no pool.
      valid: bool `[N]`, false on empty slots and on repetitions of an earlier document.
    """

    prompt_id: Array
    tokens: Array
    mask: Array
    item_ids: Array
    valid: Array


def distinct(tokens: Array, mask: Array) -> Array:
    """Marks each document's first appearance: the same document is the same tokens under the mask.

    Args:
      tokens: int `[N, T]`.
      mask: bool `[N, T]`, true on the response's tokens.

    Returns:
      bool `[N]`, false on repetitions of an earlier document.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_rank([tokens, mask], 2)
    chex.assert_equal_shape([tokens, mask])
    response = jnp.where(mask, tokens, -1)  # outside any vocabulary
    same = jnp.all(response[:, None, :] == response[None, :, :], axis=-1)
    return jnp.argmax(same, axis=1) == jnp.arange(tokens.shape[0])


def pool_candidates(
    tokens: Array, mask: Array, *, prompt_id: Array | int = 0, valid: Array | None = None
) -> Candidates:
    """All documents of a pool as candidates.

    Args:
      tokens: int `[N, T]`, distinct documents.
      mask: bool `[N, T]`, true on the response's tokens.
      prompt_id: int `[]`.
      valid: bool `[N]`, false on empty slots.

    Returns:
      The candidates; an item is its row.
    """
    num_items = tokens.shape[0]
    valid = jnp.ones(num_items, bool) if valid is None else valid
    return Candidates(jnp.asarray(prompt_id), tokens, mask, jnp.arange(num_items), valid)


def drawn_candidates(
    key: Key, log_probs: Array, tokens: Array, mask: Array, *, num_candidates: int
) -> Candidates:
    """Documents of an enumerated space drawn from a law, made distinct.

    What is then chosen by a law w over the candidates follows, roughly, proposal x w, not w. The
    law is the pretrained model's for passive learning, the members' mixture for their samples.

    Args:
      key: a typed key.
      log_probs: `[D]`, log-probs of the proposal over all documents, nats, normalised or not.
      tokens: int `[D, T]`, all documents.
      mask: bool `[D, T]`, true on the response's tokens.
      num_candidates: N, how many draws.

    Returns:
      The candidates; an item is its row among all documents.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_equal_shape([log_probs, tokens[:, 0]])
    items = jax.random.categorical(key, at_least_float32(log_probs), shape=(num_candidates,))
    first = jnp.argmax(items[:, None] == items[None, :], axis=1) == jnp.arange(num_candidates)
    return Candidates(jnp.zeros((), int), tokens[items], mask[items], items, first)


def sampled_candidates(tokens: Array, mask: Array, *, prompt_id: Array | int = 0) -> Candidates:
    """Documents sampled from a language model or from an ensemble's members, made distinct.

    Args:
      tokens: int `[N, T]`, for example of `shatter.documents.sample`.
      mask: bool `[N, T]`, true on the response's tokens.
      prompt_id: int `[]`.

    Returns:
      The candidates; their item ids are -1.
    """
    no_pool = jnp.full(tokens.shape[0], -1)
    return Candidates(jnp.asarray(prompt_id), tokens, mask, no_pool, distinct(tokens, mask))
