"""A batch of comparisons in the form that a training step reads."""

from typing import Any, NamedTuple

import numpy as np

from shatter import data
from shatter.cli.finetune.task import Training
from shatter.types import Array


class StepBatch(NamedTuple):
    """B comparisons of K documents, each with A answers.

    Attributes:
      tokens: `[B, K, T]`.
      mask: `[B, K, T]`, true on the completion.
      valid: `[B, K, T]`, false on padding.
      ranks: `[B, A, K]`, the answers.
      weight: `[B, A]`, the weight of each answer as a share of all answers of the update, in this
        batch and in the others.
      ref_log_probs: `[B, K]`, log-probs under the reference, nats.
      part: int `[B]`, the number of this batch within its update, from 0, the same in all rows.
    """

    tokens: Array
    mask: Array
    valid: Array
    ranks: Array
    weight: Array
    ref_log_probs: Array
    part: Array


def step_batch(
    batch: data.Batch,
    ref_log_probs: np.ndarray,
    train: Training | None = None,
    total: float | None = None,
    part: int = 0,
) -> StepBatch:
    """Adds answers and log-probs of the reference to a batch.

    Args:
      batch: the batch.
      ref_log_probs: log-probs of all rows under the reference, `[rows, K]`, nats.
      train: the answers to learn from; None = each row's own.
      total: the weight of all answers of the update; None = the batch is the whole update.
      part: the number of this batch within its update.

    Returns:
      The arrays, on the host.
    """
    row = np.maximum(batch.row, 0)
    ranks = batch.ranks[:, None] if train is None else train.ranks[row]
    weight = answer_weights(batch, train)
    total = float(weight.sum()) if total is None else total
    weight = (weight / (total if total > 0 else 1.0)).astype(np.float32)
    parts = np.full(len(row), part, np.int32)
    documents: list[Any] = [batch.tokens, batch.mask, batch.valid]
    answers: list[Any] = [ranks, weight, ref_log_probs[row], parts]
    return StepBatch(*documents, *answers)


def total_weight(batch: data.Batch, train: Training) -> float:
    """Returns the weight of all answers of a batch, with the parts of other processes."""
    rows = batch.all_rows[batch.all_rows >= 0]
    return float(train.weight[rows].astype(np.float64).sum())


def count_tokens(batch: data.Batch, train: Training) -> int:
    """Returns the number of tokens of the documents shown, with those of other processes."""
    total = 0
    for number in batch.all_rows[batch.all_rows >= 0]:
        row = train.encoded[number]
        shown = [len(c) for c, rank in zip(row.completions, row.ranks, strict=True) if rank >= 0]
        total += len(row.prompt) * len(shown) + sum(shown)
    return total


def answer_weights(batch: data.Batch, train: Training | None) -> np.ndarray:
    """Returns how many people gave each answer, `[B, A]`; 0 in rows that fill up the batch."""
    if train is None:
        return batch.weight[:, None].astype(np.float64)
    row = np.maximum(batch.row, 0)
    return train.weight[row].astype(np.float64) * (batch.row >= 0)[:, None]
