"""Answers of many people under adapters of their own on one frozen model."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.people.adapters import hierarchy
from experiments.people.adapters.config import Config
from experiments.people.adapters.hierarchy import Levels, Scales
from experiments.people.adapters.inputs import Answers
from shatter import models
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Frozen, Table
from shatter.cli.common.learners import text_utility
from shatter.cli.common.votes import Floats, Ints
from shatter.factored import Rows, multiply
from shatter.models.transformer import vocabulary_columns
from shatter.types import Array, Params

ROWS_AT_ONCE, NUMBERS_AT_ONCE = 64, 2**23  # rows and logits that are computed together
CHUNKS = 8  # predictions are of multiples of so many chunks, so that few sizes are compiled
NUM_WIDTHS = 3  # of tables with fewer tokens, each half as wide: few options are long


class Chunks(NamedTuple):
    """Rows of answers in chunks of B.

    Attributes:
      size: int `[C]`, which of the widths has room for the questions of a chunk.
      answers: `[C, B, ...]`; counts are 0 where there is none.
    """

    size: Any
    answers: Answers


class Programs(NamedTuple):
    """Compiled functions, and the frozen arrays that they take.

    Attributes:
      fit: `(answers, person_groups, scales, start, num_steps) -> levels`, as `hierarchy.fit`.
      utilities: `(stacked, owner[N], question[N]) -> [N, K]`, nats; anything in empty slots.
      anchor: the adapters of a model that has learned nothing: a is drawn once for all, b is 0.
      valid: bool `[Q, K]`, false in empty slots.
    """

    fit: Callable[..., Levels]
    utilities: Callable[..., Floats]
    anchor: Params
    valid: np.ndarray


def make_programs(config: Config, model: Frozen, table: Table, valid: np.ndarray) -> Programs:
    """Compiles the learner and the predictions of adapters on the last mlp_out.

    Args:
      config: has the adapters, their utility, and the seed that draws the anchor.
      model: the frozen model.
      table: of `inputs.option_table`.
      valid: bool `[Q, K]`.

    Returns:
      The programs.
    """
    layers = models.split_layers(model.config, model.config.num_layers)
    base = layers.upper_params(model.params)
    anchor = models.init_lora(jax.random.key(config.seed), base, config.lora)
    widths = _widths(table)
    needed = 1 + (table["mask"] & valid[..., None]).any(axis=1).sum(axis=-1)
    sizes = np.searchsorted(widths, needed)  # of questions
    of_question = valid.shape[1] * int(np.median(widths[sizes])) * model.config.vocab_size
    at_once = int(np.clip(NUMBERS_AT_ONCE // of_question, 1, ROWS_AT_ONCE))
    one = partial(_utilities, config, model.config, layers.upper)

    def of_rows(judge: Callable[..., Array], frozen: Any, own: Params, rows: Chunks) -> Array:
        base, table, _ = frozen

        def of_row(width: int, answers: Answers) -> Array:
            adapters = jax.tree.map(lambda leaf: leaf[answers.owner], own)
            texts = {name: values[answers.question] for name, values in table.items()}
            cut = {
                name: values if values.ndim < 2 else values[:, :width]
                for name, values in texts.items()
            }
            return judge(one(base, adapters, cut), answers)

        of_chunk = [jax.checkpoint(jax.vmap(partial(of_row, int(width)))) for width in widths]
        return jax.lax.map(
            lambda chunk: jax.lax.switch(chunk[0], of_chunk, chunk[1]), (rows.size, rows.answers)
        )

    def fit(
        frozen: Any,
        anchor: Params,
        rows: Chunks,
        person_groups: Array,
        scales: Scales,
        start: Levels,
        num_steps: int,
    ) -> Levels:
        def of_answers(utilities: Array, answers: Answers) -> Array:
            is_option = frozen[2][answers.question]
            law = jax.nn.log_softmax(jnp.where(is_option, utilities, -1e30))
            return -jnp.sum(answers.counts * jnp.where(is_option, law, 0.0))

        loss = lambda own: jnp.sum(of_rows(of_answers, frozen, own, rows))
        return hierarchy.fit(loss, anchor, person_groups, scales, start, num_steps=num_steps)

    def utilities(frozen: Any, own: Params, rows: Chunks) -> Array:
        return of_rows(lambda values, _: values, frozen, own, rows)

    options = compiler_options()
    run_fit = jax.jit(fit, static_argnames="num_steps", compiler_options=options)
    run_utilities = jax.jit(utilities, compiler_options=options)
    frozen = jax.device_put((base, table, valid))
    in_chunks = partial(_in_chunks, sizes, at_once)

    def fit_answers(
        answers: Answers, person_groups: Ints, scales: Scales, start: Levels, num_steps: int
    ) -> Levels:
        rows, _ = in_chunks(answers, multiple=1)
        numbers = Scales(*map(jnp.float32, scales))
        return run_fit(frozen, anchor, rows, person_groups, numbers, start, num_steps)

    def utilities_of(own: Params, owner: Ints, question: Ints) -> Floats:
        nothing = np.zeros((len(owner), 0), np.float32)
        rows, order = in_chunks(Answers(owner, question, nothing), multiple=CHUNKS)
        found = np.zeros((len(owner), valid.shape[1]))
        values = np.asarray(run_utilities(frozen, own, rows))
        found[order] = values.reshape(-1, valid.shape[1])[: len(owner)]
        return found

    return Programs(fit_answers, utilities_of, anchor, valid)


def _utilities(
    config: Config,
    transformer: models.TransformerConfig,
    upper: models.LanguageModel,
    base: Params,
    own: Params,
    texts: Table,
) -> Array:
    """Returns the utilities `[K]` of texts under one adapter.

    The adapter changes the features, whose product with the vocabulary is then one of all rows that
    are vmapped: faster than with an adapter's own factor of the vocabulary, if few texts share it.
    """
    assert upper.features is not None
    features = upper.features(models.with_lora(base, own, config.lora), texts["hidden"])
    logits = multiply(Rows(features), vocabulary_columns(transformer, base, features.dtype))
    return text_utility(config.utility, logits, texts, scale=config.utility_scale)


def _widths(table: Table) -> Ints:
    """Returns the numbers of tokens to which the table may be cut, ascending."""
    most = table["tokens"].shape[-1]
    return np.unique([-(-most // 2**halvings) for halvings in range(NUM_WIDTHS)])


def _in_chunks(
    sizes: Ints, at_once: int, answers: Answers, *, multiple: int
) -> tuple[Chunks, Ints]:
    """Returns rows in chunks of questions of like size, and the order in which they are there."""
    order = np.argsort(sizes[answers.question], kind="stable")
    number = -len(order) % (at_once * multiple)
    chunks = [
        np.pad(np.asarray(values)[order], ((0, number), *((0, 0),) * (np.ndim(values) - 1)))
        for values in answers
    ]
    shape = lambda values: (len(values) // at_once, at_once, *values.shape[1:])
    shaped = [values.reshape(shape(values)) for values in chunks]
    of_chunks = np.pad(sizes[answers.question][order], (0, number)).reshape(-1, at_once)
    return Chunks(of_chunks.max(axis=1), Answers(*shaped)), order
