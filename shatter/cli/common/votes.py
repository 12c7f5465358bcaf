"""Votes on pairs of texts, and how well utilities of texts predict them."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import entr, log_expit

from shatter.cli.common.agreement import agreement
from shatter.data import Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Item = tuple[str, str]
"""A prompt and a completion, each as a string."""


class Pairs(NamedTuple):
    """Rows as votes on pairs: P pairs of N items.

    Attributes:
      items: the N items, a text under its prompt.
      compared: `[P, 2]` which items a pair compares.
      votes: `[P, 3]` how many put the first before, the second before, and neither.
      rows: `[P]` the first row of a pair, which has the pair's order.
      has_counts: `[P]` whether that row has vote counts.
    """

    items: list[Item]
    compared: Ints
    votes: Floats
    rows: Ints
    has_counts: npt.NDArray[np.bool_]


def to_pairs(rows: Sequence[Row]) -> Pairs:
    """Adds up the rows' weights, pair by pair.

    Raises:
      ValueError: if a row is no comparison of two completions; with its number and source.
    """
    items: dict[Item, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    votes: list[list[float]] = []
    firsts: list[int] = []
    for number, row in enumerate(rows):
        if len(row.completions) != 2 or min(row.ranks) < 0:
            raise ValueError(
                f"row {number} ({row.source or 'no source'}): expected two completions, both with "
                f"a rank >= 0, found {len(row.completions)} with ranks {row.ranks}"
            )
        a, b = (items.setdefault(item, len(items)) for item in row_items(row))
        is_swapped = (a, b) not in pairs and (b, a) in pairs
        pair = pairs.setdefault((b, a) if is_swapped else (a, b), len(pairs))
        if pair == len(votes):
            votes.append([0.0, 0.0, 0.0])
            firsts.append(number)
        first, second = row.ranks
        answer = 2 if first == second else int((first > second) != is_swapped)
        votes[pair][answer] += row.weight
    has_counts = np.array([rows[n].votes is not None for n in firsts], bool)
    index = np.array(list(pairs), np.int64).reshape(-1, 2)
    shape = (len(votes), 3)
    return Pairs(
        list(items), index, np.array(votes).reshape(shape), np.array(firsts, int), has_counts
    )


def score(rows: Sequence[Row], utilities: npt.ArrayLike) -> dict[str, float]:
    """Judges utilities by what people said; rows of the same two completions are one pair.

    Args:
      rows: comparisons of two completions, weighted by their votes.
      utilities: `[R, 2]`, of the rows' completions, nats; of a pair's rows the first counts.

    Returns:
      Measures by name, those of which there is nothing to take a mean of absent.
      log_loss: mean of -log P(the one preferred) over votes, nats; equal votes are left out.
      accuracy: share of pairs whose majority has the larger utility; pairs without a majority are
        left out, equal utilities count one half.
      calibration_error: `sum_b |sum of P(first) - votes for first|` over `BINS` equal bins of
        P(first), per vote.
      share_kl: KL(shares of the votes || model) over pairs with vote counts, mean over decided
        votes, nats. Its floor is not 0 but sampling noise: near 1/(2n) with
        n votes a pair, for a model that knows what share of all people prefers which.

    Raises:
      ValueError: if the shape is another or a utility is not finite.
    """
    utilities = np.asarray(utilities, np.float64)
    if utilities.shape != (len(rows), 2) or not np.isfinite(utilities).all():
        raise ValueError(
            f"expected finite utilities [{len(rows)}, 2], found {list(utilities.shape)} with "
            f"{int(np.sum(~np.isfinite(utilities)))} not finite"
        )
    pairs = to_pairs(rows)
    gaps = utilities[pairs.rows, 0] - utilities[pairs.rows, 1]
    first, second, _ = pairs.votes.T
    decided = first + second
    sums = agreement(log_expit(gaps), log_expit(-gaps), first, second)
    counted = pairs.has_counts & (decided > 0)
    share = first[counted] / decided[counted]
    noise = decided[counted] @ (entr(share) + entr(1 - share))
    return means(
        log_loss=(sums.losses.sum(), decided.sum()),
        accuracy=(sums.is_right[sums.has_majority].sum(), sums.has_majority.sum()),
        calibration_error=(sums.calibration_gap, decided.sum()),
        share_kl=(sums.losses[counted].sum() - noise, decided[counted].sum()),
    )


def means(**parts: tuple[Any, Any]) -> dict[str, float]:
    """Returns total over weight of each `(total, weight)` by name; without weight it is absent."""
    return {name: float(total / weight) for name, (total, weight) in parts.items() if weight > 0}


def row_items(row: Row) -> list[Item]:
    """Returns the items that a row compares, each a text under its prompt."""
    return [(_text(row.prompt), _text(completion)) for completion in row.completions]


def _text(given: object) -> str:
    return given if isinstance(given, str) else json.dumps(given, sort_keys=True)
