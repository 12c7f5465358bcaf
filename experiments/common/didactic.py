"""The didactic world: every document of a tiny vocabulary, a table and a model over them (ours)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shatter import documents, models, numerics, training
from shatter.cli.common.binary import UsageError
from shatter.types import Array, Metrics, Params

EOS = 0
TRANSFORMER: dict[str, Any] = {"width": 16, "num_layers": 2, "num_heads": 2}
PRETRAINING_STEPS = 300

ModelKind = Literal["tabular", "transformer"]


class World(NamedTuple):
    """The documents and the models that all seeds have in common.

    Attributes:
      lm: the model that learns.
      table: a table over the same documents, which can represent every law.
      space: tokens and mask of all D documents; token 0 ends a document.
      log_probs: `(params) -> [D]`, the law of the model that learns over all documents.
      law_of: `(apply) -> [D]`, the law of any `(tokens) -> logits`.
    """

    lm: models.LanguageModel
    table: models.LanguageModel
    space: tuple[Array, Array]
    log_probs: Callable[[Params], Array]
    law_of: Callable[[Callable[[Array], Array]], Array]


def check_documents(vocab_size: int, max_length: int, *, most: int) -> None:
    """Raises an error if there are too many documents to enumerate.

    Args:
      vocab_size: the flag --vocab_size.
      max_length: the flag --max_length.
      most: the largest number of documents.

    Raises:
      UsageError: naming the flags, the bound and the number found.
    """
    size = vocab_size**max_length
    if size > most:
        raise UsageError(
            f"--vocab_size ** --max_length must be at most {most}, because every document is "
            f"enumerated, found {vocab_size} ** {max_length} = {size}"
        )


def make_world(kind: ModelKind, *, vocab_size: int, max_length: int) -> World:
    """Enumerates the documents and builds the models."""
    space = documents.enumerate_documents(vocab_size=vocab_size, max_length=max_length, eos=EOS)
    table = models.tabular(vocab_size=vocab_size, max_length=max_length)
    law_of = partial(tree_log_probs, vocab_size=vocab_size, max_length=max_length)
    if kind == "tabular":
        of_table = partial(table_log_probs, vocab_size=vocab_size, max_length=max_length)
        return World(table, table, space, of_table, law_of)
    sizes = models.TransformerConfig(
        vocab_size=vocab_size, max_length=1 + max_length, **TRANSFORMER
    )
    lm = models.transformer(sizes)
    return World(lm, table, space, lambda params: law_of(partial(lm.apply, params)), law_of)


def table_log_probs(params: Params, *, vocab_size: int, max_length: int) -> Array:
    """Returns the law of a table over all documents, `documents.document_log_probs` of it.

    It goes down the tree of prefixes level by level, and so looks nothing up: many tables at a time
    take a tenth of the time.

    Args:
      params: `[1, P, V]`, of `models.tabular` with one prompt.
      vocab_size: V; token 0 ends a document.
      max_length: the largest number of tokens of a document.

    Returns:
      `[D]`, nats, in the order of `documents.enumerate_documents`.
    """
    return _law_of_levels(_open_levels(params, vocab_size, max_length))


def tree_log_probs(apply: Callable[[Array], Array], *, vocab_size: int, max_length: int) -> Array:
    """Returns the law of a causal model over all documents, `documents.document_log_probs` of it.

    It runs over the documents that do not end before their last token alone, because they have all
    prefixes: a quarter of the tokens at vocabulary 4 and length 4.

    Args:
      apply: `(tokens[n, T]) -> logits[n, T, V]`.
      vocab_size: V; token 0 ends a document.
      max_length: the largest number of tokens of a document.

    Returns:
      `[D]`, nats, in the order of `documents.enumerate_documents`.
    """
    length, branches = max_length - 1, vocab_size - 1
    longest = np.indices((branches,) * length).reshape(length, branches**length).T + 1
    longest = np.pad(longest, ((0, 0), (1, 0)), constant_values=EOS)  # which also begins documents
    log_probs = jax.nn.log_softmax(apply(jnp.asarray(longest)), axis=-1)
    firsts = [branches ** (length - t) for t in range(max_length)]
    return _law_of_levels([log_probs[::first, t] for t, first in enumerate(firsts)])


def open_logits(vocab_size: int, max_length: int) -> np.ndarray:
    """Returns which logits of a table follow a prefix that has not ended.

    Args:
      vocab_size: V; token 0 ends a document.
      max_length: the largest number of tokens of a document.

    Returns:
      int `[P]`, places in the flattened parameters.
    """
    places, start = [], 0
    for t in range(max_length):
        level = np.arange(vocab_size ** (t + 1)).reshape((vocab_size,) * (t + 1))
        places.append(start * vocab_size + level[(slice(1, None),) * t].ravel())
        start += vocab_size**t
    return np.concatenate(places)


def _law_of_levels(levels: list[Array]) -> Array:
    """Returns the law `[D]` of the log-probs `[(V - 1)^t, V]` after every prefix of t tokens."""
    *upper, below = levels
    for level in reversed(upper):
        children = level[:, 1:, None] + below.reshape(len(level), level.shape[1] - 1, -1)
        below = jnp.concatenate([level[:, :1], children.reshape(len(level), -1)], axis=1)
    return below[0]


def _open_levels(params: Params, vocab_size: int, max_length: int) -> list[Array]:
    """Returns the log-probs `[(V - 1)^t, V]` after every prefix of t tokens that has not ended."""
    log_probs = jax.nn.log_softmax(params[0], axis=-1)
    levels, start = [], 0
    for t in range(max_length):
        level = log_probs[start : start + vocab_size**t].reshape((vocab_size,) * (t + 1))
        levels.append(level[(slice(1, None),) * t].reshape(-1, vocab_size))
        start += vocab_size**t
    return levels


def fit_law(world: World, params: Params, log_p0: Array) -> Params:
    """Fits the model to a law over all documents `[D]` by its exact forward KL."""

    def objective(params: Params, log_p0: Array, key: Array, batch: None) -> tuple[Array, Metrics]:
        del key, batch
        log_probs = documents.document_log_probs(world.lm, params, *world.space)
        return numerics.kl_divergence(log_p0, log_probs), {}

    fit = training.learner(objective, optax.adam(1e-2))
    state = fit.init(params, jax.random.key(0))
    state, _ = jax.lax.scan(
        lambda state, _: fit.step(state, log_p0, None), state, length=PRETRAINING_STEPS
    )
    return state.params
