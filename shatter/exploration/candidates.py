"""Where candidates come from; how a query is chosen among them is an arm's choice."""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import LOG_ZERO, assert_positive, at_least_float32
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
    key: Key,
    log_probs: Array,
    tokens: Array,
    mask: Array,
    *,
    num_candidates: int,
    temperature: float | Array = 1.0,
    distinct: bool = False,
) -> Query:
    """Draws documents of an enumerated space from a law, the proposal, tempered or not.

    The draws have the law `P(x)^(1 / temperature)`. They are independent, and repetitions are not
    valid; or, if `distinct`, they are drawn in turn among the documents that are left, by the
    largest of Gumbel-perturbed log-probs. An arm that then chooses by a law w over the candidates
    chooses, roughly, by proposal x w, not by w. For passive learning the proposal is the pretrained
    model's law, for samples of the members it is their mixture.

    Source: Kool et al., Stochastic Beams and Where to Find Them, https://arxiv.org/abs/1903.06059,
    for drawing without replacement by Gumbel noise.

    Args:
      key: a typed key.
      log_probs: `[D]`, log-probs of the proposal P over all documents, nats, normalised or not;
        -inf or NaN = impossible.
      tokens: int `[D, T]`, all documents.
      mask: bool `[D, T]`, true on the response's tokens.
      num_candidates: N, how many draws.
      temperature: above 0, else a ValueError; infinity is uniform over what is possible.
      distinct: whether the candidates differ. Where the law has fewer possible documents than N,
        the slots that are left are not valid.

    Returns:
      The N candidates as one query; an item is its row among all documents. None is valid where no
      document is possible.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_equal_shape([log_probs, tokens[:, 0]])
    assert_positive(temperature=temperature)
    log_probs = at_least_float32(log_probs)
    possible = log_probs > LOG_ZERO
    utilities = jnp.where(possible, log_probs / temperature, -jnp.inf)
    if distinct:
        noisy = utilities + jax.random.gumbel(key, utilities.shape, utilities.dtype)
        best = jnp.argsort(noisy, descending=True)
        slots = jnp.arange(num_candidates)
        valid = slots < jnp.sum(possible)
        items = best[jnp.where(valid, slots, 0)]
    else:
        items = jax.random.categorical(key, utilities, shape=(num_candidates,))
        first = jnp.argmax(items[:, None] == items[None, :], axis=1) == jnp.arange(num_candidates)
        valid = first & possible[items]
    return Query(jnp.zeros((), int), tokens[items], mask[items], items, valid)


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
