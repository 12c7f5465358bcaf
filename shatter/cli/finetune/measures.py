"""Measures of how well a model predicts held-out comparisons and demonstrations."""

from collections.abc import Sequence

import numpy as np

from shatter import data
from shatter.cli.common import votes


def demonstration_scores(
    encoded: Sequence[data.Encoded], log_probs: np.ndarray
) -> dict[str, float]:
    """Measures the loss of sft on held-out demonstrations, or on the best completions of rows.

    Args:
      encoded: the rows.
      log_probs: `[rows, K]`, summed over a completion's tokens, nats.

    Returns:
      token_log_loss: the mean over rows of minus the mean log-prob of a completion's token, nats.
      It is absent if no row has weight.
    """
    rows = [row.row for row in encoded]
    ranks, weight = votes.pad_ranks(rows), np.asarray([row.weight for row in rows])
    lengths = np.ones(ranks.shape)
    for number, row in enumerate(encoded):
        skipped = row.skipped or (0,) * len(row.completions)
        counted = [len(ids) - n for ids, n in zip(row.completions, skipped, strict=True)]
        lengths[number, : len(counted)] = counted
    shown = np.where(ranks >= 0, ranks, np.iinfo(ranks.dtype).max)
    best = (ranks >= 0) & (shown == shown.min(axis=1, keepdims=True))
    num_best = best.sum(axis=1)
    each = np.where(best, -log_probs.astype(float) / lengths, 0.0).sum(axis=1)
    each = each / np.maximum(num_best, 1)
    return votes.means(token_log_loss=(weight @ each, weight @ (num_best > 0)))
