"""Pairs of cartoon captions with votes, made from ratings of single captions (ours)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

PAIRS_PER_CAPTION = 2  # that are drawn; each caption is then in about twice as many
MAX_RATERS = 10  # of a pair, so that captions with many ratings do not drown the others


def voted_pairs(
    texts: Sequence[str], ratings: dict[str, np.ndarray], rng: np.random.Generator
) -> list[tuple[tuple[str, str], tuple[float, float, float]]]:
    """Draws pairs of captions, and gives each of them votes from ratings of its own.

    Args:
      texts: the captions of one cartoon.
      ratings: counts `[3]` of the ratings by caption, the worst first.
      rng: draws the pairs and deals the ratings.

    Returns:
      Pairs and their votes, of `caption_votes`.
    """
    couples = _couples(texts, rng)
    num_left = Counter(text for couple in couples for text in couple)
    ratings_left = {text: ratings[text] for text in texts}

    def deal(text: str) -> np.ndarray:
        """Draws the ratings of a caption for its next pair, without replacement."""
        left = ratings_left[text]
        dealt = rng.multivariate_hypergeometric(left, left.sum() // num_left[text])
        ratings_left[text] = left - dealt
        num_left[text] -= 1
        return dealt

    return [((a, b), caption_votes(deal(a), deal(b))) for a, b in couples]


def caption_votes(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Computes the expected votes on a pair of captions.

    With a_k the share of ratings k of the first caption and b_k that of the second, two independent
    raters put the first before the second with probability sum_{k > l} a_k b_l, and neither before
    the other with sum_k a_k b_k. The votes are these probabilities times the number of ratings of
    the less rated caption, at most `MAX_RATERS`.

    Args:
      first: `[3]`, counts of the ratings of the first caption, the worst first.
      second: `[3]`, those of the second.

    Returns:
      Votes for the first, the second and neither, which add up to the number of raters.
    """
    num_raters = min(first.sum(), second.sum(), MAX_RATERS)
    table = num_raters * np.outer(first, second) / max(first.sum() * second.sum(), 1)
    return float(np.tril(table, -1).sum()), float(np.triu(table, 1).sum()), float(np.trace(table))


def _couples(texts: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs each text with the next around `PAIRS_PER_CAPTION` random circles, no pair twice."""
    couples: dict[frozenset[str], tuple[str, str]] = {}
    for _ in range(PAIRS_PER_CAPTION if len(texts) > 1 else 0):
        circle = [texts[i] for i in rng.permutation(len(texts))]
        for couple in zip(circle, circle[1:] + circle[:1], strict=True):
            couples.setdefault(frozenset(couple), couple)
    return list(couples.values())
