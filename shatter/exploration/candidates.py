"""Where candidates come from; how a query is chosen among them is an arm's choice."""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import at_least_float32
from shatter.types import Array, Key, Query


def distinct(tokens: Array, mask: Array) -> Array:
    """Marks each document's first appearance.

    Two documents are the same if their tokens under the mask are.

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
) -> Query:
    """Returns all documents of a pool as candidates.

    Args:
      tokens: int `[N, T]`, distinct documents.
      mask: bool `[N, T]`, true on the response's tokens.
      prompt_id: int `[]`.
      valid: bool `[N]`, false on empty slots.

    Returns:
      The N candidates as one query; an item is its row.
    """
    num_items = tokens.shape[0]
    valid = jnp.ones(num_items, bool) if valid is None else valid
    return Query(jnp.asarray(prompt_id), tokens, mask, jnp.arange(num_items), valid)


def drawn_candidates(
    key: Key, log_probs: Array, tokens: Array, mask: Array, *, num_candidates: int
) -> Query:
    """Draws documents of an enumerated space from a law, the proposal; repetitions are not valid.

    An arm that then chooses by a law w over the candidates chooses, roughly, by proposal x w, not
    by w. For passive learning the proposal is the pretrained model's law, for samples of the
    members it is their mixture.

    Args:
      key: a typed key.
      log_probs: `[D]`, log-probs of the proposal over all documents, nats, normalised or not.
      tokens: int `[D, T]`, all documents.
      mask: bool `[D, T]`, true on the response's tokens.
      num_candidates: N, how many draws.

    Returns:
      The N candidates as one query; an item is its row among all documents.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_equal_shape([log_probs, tokens[:, 0]])
    items = jax.random.categorical(key, at_least_float32(log_probs), shape=(num_candidates,))
    first = jnp.argmax(items[:, None] == items[None, :], axis=1) == jnp.arange(num_candidates)
    return Query(jnp.zeros((), int), tokens[items], mask[items], items, first)


def sampled_candidates(tokens: Array, mask: Array, *, prompt_id: Array | int = 0) -> Query:
    """Returns samples of a language model, or of the members, as candidates.

    Args:
      tokens: int `[N, T]`, for example of `shatter.documents.sample`.
      mask: bool `[N, T]`, true on the response's tokens.
      prompt_id: int `[]`.

    Returns:
      The N candidates as one query; repetitions are not valid, item ids are -1.
    """
    no_pool = jnp.full(tokens.shape[0], -1)
    return Query(jnp.asarray(prompt_id), tokens, mask, no_pool, distinct(tokens, mask))
