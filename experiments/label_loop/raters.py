"""Answers in place of people: recorded votes, or choices by the utilities of a model."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.label_loop.config import Config
from shatter import data, documents, models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Frozen, load_frozen
from shatter.cli.label.pool import Pool, Votes
from shatter.cli.label.queries import TextQuery
from shatter.types import Array, Params

TextRater = Callable[[TextQuery, np.random.Generator], tuple[int, ...]]
"""`(query, rng) -> ranks[K]`."""


def recorded_rater(pool: Pool, pool_path: str) -> TextRater:
    """Returns a rater that draws one of the recorded answers to a query.

    Args:
      pool: the pool with the answers.
      pool_path: its file, for messages.

    Returns:
      The rater; it raises a UsageError if the pool has no answer to a query.
    """

    def rater(query: TextQuery, rng: np.random.Generator) -> tuple[int, ...]:
        votes = pool.rows.get(tuple(query.item_ids))
        if votes is None:
            raise UsageError(
                f"{query.source}: {pool_path} has no recorded answer to {query.query_id}: use "
                "another --project for --rater=recorded"
            )
        return draw_vote(votes, rng)

    return rater


def draw_vote(votes: Votes, rng: np.random.Generator) -> tuple[int, ...]:
    """Draws one of the recorded answers, in proportion to their weights."""
    weights = np.array(list(votes.values()))
    return list(votes)[rng.choice(len(weights), p=weights / weights.sum())]


def model_rater(config: Config, date: str | None) -> TextRater:
    """Returns a rater that chooses by Luce's rule on a model's mean log-prob or its rewards.

    Args:
      config: the flags.
      date: the date for the chat template of the model; None = now.

    Returns:
      The rater.

    Raises:
      UsageError: if the model cannot be read, or has too few positions for --max_length.
    """
    frozen, head = _load_rater(config, date)
    utilities = _utilities(frozen, head)

    def rater(query: TextQuery, rng: np.random.Generator) -> tuple[int, ...]:
        num = len(query.completions)
        row = data.Row(query.prompt, query.completions, (0,) * num)
        try:
            encoded, _ = data.encode_rows([row], frozen.tokenizer, max_length=config.max_length)
        except ValueError as error:
            raise UsageError(f"--rater_model: {error}") from error
        batch = data.collate(encoded, [0], length=config.max_length, num_slots=num)
        arrays = (batch.tokens[0], batch.mask[0], batch.valid[0])
        scaled = config.rater_scale * np.asarray(utilities(frozen.params, *arrays))
        if not np.isfinite(scaled).all():
            raise UsageError(
                f"--rater_model={config.rater_model}: expected finite utilities of the responses "
                f"of {query.query_id}, found {scaled.tolist()}: it cannot be computed in "
                "float32; name another model"
            )
        chosen = int(np.argmax(scaled + rng.gumbel(size=num)))
        return tuple(1 if k == chosen else 2 for k in range(num))

    return rater


def _utilities(frozen: Frozen, head: np.ndarray | None) -> Callable[..., Array]:
    """Returns the compiled function `(params, tokens[K, T], mask, valid) -> utilities[K]`."""
    lm = models.transformer(frozen.config)

    def utilities(params: Params, tokens: Array, mask: Array, valid: Array) -> Array:
        if head is None:
            log_probs = documents.document_log_probs(lm, params, tokens, mask, valid=valid)
            return log_probs / mask.sum(axis=-1)
        assert lm.features is not None
        features = lm.features(params, tokens, valid=valid)
        last = valid.sum(axis=-1) - 1
        return (features[np.arange(len(tokens)), last] * head[None]).sum(axis=-1)

    return jax.jit(utilities, compiler_options=compiler_options())


def _load_rater(config: Config, date: str | None) -> tuple[Frozen, np.ndarray | None]:
    """Returns the model of --rater_model, and its reward head if it has one."""
    parsed_date = date and binary.date("template_date", date)
    try:
        frozen = load_frozen(config.rater_model, date=parsed_date or None)
    except UsageError as error:
        message = str(error).replace("--model_name_or_path", "--rater_model", 1)
        raise UsageError(message) from error
    if config.max_length > frozen.config.max_length:
        raise UsageError(
            f"--max_length={config.max_length}: expected at most the {frozen.config.max_length} "
            f"tokens of --rater_model={config.rater_model}"
        )
    file = Path(config.rater_model) / "reward_head.safetensors"
    return frozen, _reward_head(file, frozen.config.width) if file.is_file() else None


def _reward_head(file: Path, width: int) -> np.ndarray:
    """Returns the weights `[D]` of a reward head."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        head = load_file(file)["score.weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(f"--rater_model: {file} cannot be read: {error}") from error
    if head.shape != (1, width) or not np.isfinite(head).all():
        raise UsageError(
            f"--rater_model: {file}: score.weight: expected finite numbers [1, {width}], found "
            f"{head.dtype} {list(head.shape)}"
        )
    return head[0]
