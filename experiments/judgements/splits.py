"""Votes on pairs of texts, divided into pairs to learn from and pairs to evaluate by."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

NEW_ITEMS = 0.2  # of all items, or of all sides of debates
KNOWN_PAIRS = 0.1  # of the pairs of the other items

Unit = TypeVar("Unit", str, tuple[str, ...])


class Pair(NamedTuple):
    """Votes on two texts under one prompt.

    Attributes:
      prompt: the prompt; "" = none.
      completions: the two texts.
      votes: the number of votes for the first, for the second and, where people could say so, for
        neither.
      source: the file and the place in it.
    """

    prompt: str
    completions: tuple[str, str]
    votes: tuple[float, ...]
    source: str


class Parts(NamedTuple):
    """Pairs to learn from, held-out pairs of the same items, and held-out pairs of new items."""

    train: list[Pair]
    known: list[Pair]
    new: list[Pair]


def pair_items(pair: Pair) -> list[tuple[str, ...]]:
    """Returns the two items of a pair, each a text under its prompt."""
    return [(pair.prompt, completion) for completion in pair.completions]


def split_pairs(
    pairs: Sequence[Pair], rng: np.random.Generator, *, by_prompt: bool = False
) -> Parts:
    """Splits pairs into train, known and new.

    Args:
      pairs: the pairs.
      rng: draws the new items, then the known pairs.
      by_prompt: whether whole prompts are new, with all their items, and not single items.

    Returns:
      The three parts, each in the order of `pairs`.
    """

    def units(pair: Pair) -> list[tuple[str, ...]]:
        return [(pair.prompt,)] if by_prompt else pair_items(pair)

    new_units = draw_new(dict.fromkeys(unit for pair in pairs for unit in units(pair)), rng)
    num_new = [sum(unit in new_units for unit in units(pair)) for pair in pairs]
    new = [pair for pair, n in zip(pairs, num_new, strict=True) if n == len(units(pair))]
    train, known = split_known([p for p, n in zip(pairs, num_new, strict=True) if n == 0], rng)
    return Parts(train, known, new)


def draw_new(units: Iterable[Unit], rng: np.random.Generator) -> dict[Unit, None]:
    """Draws the new ones of distinct units.

    Args:
      units: items, or prompts.
      rng: draws them.

    Returns:
      The new units as the keys of a dict, whose order is reproducible.
    """
    ordered = list(units)
    order = rng.permutation(len(ordered))[: round(NEW_ITEMS * len(ordered))]
    return dict.fromkeys(ordered[i] for i in sorted(order))


def split_known(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into train and known.

    Args:
      pairs: the pairs.
      rng: draws the known ones.

    Returns:
      train and known. A pair goes back to train if no other pair there shows one of its items.
    """
    order = rng.permutation(len(pairs))
    num_known = round(KNOWN_PAIRS * len(pairs))
    train = set(order[num_known:].tolist())
    shown = {item for i in train for item in pair_items(pairs[i])}
    for i in order[:num_known].tolist():
        if not shown.issuperset(pair_items(pairs[i])):
            train.add(i)
            shown.update(pair_items(pairs[i]))
    known = [pair for i, pair in enumerate(pairs) if i not in train]
    return [pairs[i] for i in sorted(train)], known
