"""The didactic world: every document of a tiny vocabulary, a table and a model over them (ours)."""

from typing import Any, Literal, NamedTuple

import jax
import optax

from shatter import documents, models, training
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
    """

    lm: models.LanguageModel
    table: models.LanguageModel
    space: tuple[Array, Array]


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
    if kind == "tabular":
        return World(table, table, space)
    sizes = models.TransformerConfig(
        vocab_size=vocab_size, max_length=1 + max_length, **TRANSFORMER
    )
    return World(models.transformer(sizes), table, space)


def fit_law(world: World, params: Params, log_p0: Array) -> Params:
    """Fits the model to a law over all documents `[D]` by its exact forward KL."""

    def objective(params: Params, log_p0: Array, key: Array, batch: None) -> tuple[Array, Metrics]:
        del key, batch
        log_probs = documents.document_log_probs(world.lm, params, *world.space)
        return documents.kl_divergence(log_p0, log_probs), {}

    fit = training.learner(objective, optax.adam(1e-2))
    state = fit.init(params, jax.random.key(0))
    state, _ = jax.lax.scan(
        lambda state, _: fit.step(state, log_p0, None), state, length=PRETRAINING_STEPS
    )
    return state.params
