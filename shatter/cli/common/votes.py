"""Measures of how well utilities of texts predict what people chose."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from scipy.special import entr, log_expit, rel_entr, softmax

from shatter import losses
from shatter.cli.common.agreement import agreement
from shatter.cli.common.compiling import compiler_options
from shatter.data import Row
from shatter.types import Array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Item = tuple[str, str]
"""A prompt and a completion, each as a string."""


class Pairs(NamedTuple):
    """Votes on P pairs of N items.

    Attributes:
      items: the N items, each a text under its prompt.
      compared: `[P, 2]`, the two items of each pair.
      votes: `[P, 3]`, the number of votes for the first item, for the second, and for neither.
      rows: `[P]`, the first row about each pair, whose order of the items is the pair's.
      has_counts: `[P]`, whether that row has vote counts.
    """

    items: list[Item]
    compared: Ints
    votes: Floats
    rows: Ints
    has_counts: npt.NDArray[np.bool_]


def to_pairs(rows: Sequence[Row]) -> Pairs:
    """Adds up the rows' weights, pair by pair.

    Args:
      rows: comparisons of two completions.

    Returns:
      The pairs.

    Raises:
      ValueError: naming the number and the source of a row that does not compare two completions.
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
    """Measures how well utilities predict people's choices between two completions.

    Rows of the same two completions are one pair. P(first) is Luce's: the logistic function of the
    difference of the two utilities.

    Args:
      rows: comparisons of two completions, weighted by their votes.
      utilities: `[R, 2]`, utilities of the rows' completions, nats. Of several rows about one pair
        the first one's count.

    Returns:
      Measures by name. A mean over nothing is absent.
      log_loss: mean of -log P(the preferred one) over votes, nats; votes for neither do not count.
      accuracy: the share of pairs whose majority prefers the larger utility. Pairs without a
        majority do not count, and equal utilities count one half.
      calibration_error: `sum_b |sum of P(first) - votes for first|` in ten equal bins of P(first),
        per vote.
      share_kl: KL(shares of the votes || model), nats: the mean over pairs with vote counts,
        weighted by votes for either. For a model that knows which share of all people prefers which
        text it is not 0 but near 1/(2n) with n votes a pair, because the votes are a sample.

    Raises:
      ValueError: if the utilities have another shape or are not finite.
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


def score_rankings(rows: Sequence[Row], utilities: npt.ArrayLike) -> dict[str, float]:
    """Measures how well utilities predict people's rankings of any number of completions.

    Args:
      rows: R rankings of at most K completions.
      utilities: `[R, K]`, utilities of the rows' completions, nats; those beyond a row's own are
        ignored.

    Returns:
      Measures by name. A mean over nothing is absent.
      log_loss: mean of -log of the rankings' Plackett-Luce probability over rows that order at
        least two completions, nats; ties are unresolved orders.
      accuracy: the share of strictly ordered pairs that the utilities order the same way, equal
        utilities counting one half.
      share_kl: mean of KL(shares of the votes || model) over comparisons with votes, nats.
    """
    ranks, weight = pad_ranks(rows), np.asarray([row.weight for row in rows])
    utilities = np.asarray(utilities)[:, : ranks.shape[1]]
    each = np.asarray(ranking_losses()(utilities, ranks))
    shown = ranks >= 0
    ordered = (ranks[:, :, None] < ranks[:, None, :]) & shown[:, :, None] & shown[:, None, :]
    is_right = 0.5 + 0.5 * np.sign(utilities[:, :, None] - utilities[:, None, :])
    num_ordered = ordered.sum(axis=(1, 2))
    # Every answer to one comparison has a row with the votes of all.
    voted = {row.source: n for n, row in enumerate(rows) if _votes(row).sum() > 0}
    share_kl = [_share_kl(_votes(rows[n]), utilities[n]) for n in voted.values()]
    return means(
        log_loss=(weight @ np.where(num_ordered > 0, each, 0.0), weight @ (num_ordered > 0)),
        accuracy=(weight @ (ordered * is_right).sum(axis=(1, 2)), weight @ num_ordered),
        share_kl=(sum(share_kl), len(share_kl)),
    )


def held_out_scores(rows: Sequence[Row], utilities: npt.ArrayLike) -> dict[str, float]:
    """Measures how well utilities predict held-out comparisons.

    Rows of two completions have the measures of `score`, and rows of more those of `score_rankings`
    with the prefix `ranking_`. Rows of which fewer than two completions were shown compare nothing
    and are left out.

    Args:
      rows: R rows of at most K completions.
      utilities: `[R, K]`, nats.

    Returns:
      Measures by name. A mean over nothing is absent.
    """
    utilities = np.asarray(utilities)
    compared = [n for n, row in enumerate(rows) if sum(rank >= 0 for rank in row.ranks) > 1]
    pairs = [n for n in compared if len(rows[n].completions) == 2]
    rankings = [n for n in compared if len(rows[n].completions) > 2]
    scores = {}
    if pairs:
        scores = score([rows[n] for n in pairs], utilities[pairs, :2])
    if rankings:
        found = score_rankings([rows[n] for n in rankings], utilities[rankings])
        scores |= {f"ranking_{name}": value for name, value in found.items()}
    return scores


@functools.cache
def ranking_losses() -> Callable[..., Array]:
    """Returns `shatter.losses.ilhf_ranking_loss`, compiled."""
    return jax.jit(losses.ilhf_ranking_loss, compiler_options=compiler_options())


def pad_ranks(rows: Sequence[Row]) -> Ints:
    """Returns the rows' ranks, int `[R, K]`; -1 where a row has fewer than K completions."""
    ranks = np.full((len(rows), max(len(row.completions) for row in rows)), -1)
    for number, row in enumerate(rows):
        ranks[number, : len(row.ranks)] = row.ranks
    return ranks


def _votes(row: Row) -> Floats:
    """Returns a row's votes for each completion, `[K]`; zeros if it has no votes."""
    num = len(row.completions)
    return np.zeros(num) if row.votes is None else np.asarray(row.votes[:num], np.float64)


def _share_kl(votes: Floats, utilities: Floats) -> float:
    law = softmax(utilities[: len(votes)].astype(np.float64))
    return float(np.sum(rel_entr(votes / votes.sum(), law)))


def means(**parts: tuple[Any, Any]) -> dict[str, float]:
    """Returns total / weight of every `(total, weight)` by name, and nothing where weight is 0."""
    return {name: float(total / weight) for name, (total, weight) in parts.items() if weight > 0}


def row_items(row: Row) -> list[Item]:
    """Returns the items that a row compares."""
    return [(_text(row.prompt), _text(completion)) for completion in row.completions]


def _text(text: object) -> str:
    """Returns a text, or a conversation as JSON."""
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True)
