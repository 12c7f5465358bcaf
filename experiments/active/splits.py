"""Divisions of a data set as arrays: a pool of queries with votes, and pairs to judge by."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.judgements.datasets import load_judgements
from shatter.cli.common.votes import Item, Pairs, to_pairs
from shatter.data import Row

Numbers = Any
"""Arrays of numpy on the host, of jax in the process."""
JOINT_PAIRS = 500  # of new items, drawn for the joint log-loss and the members' disagreement


class Votes(NamedTuple):
    """Pairs of texts with votes; those that fill up have no votes.

    Attributes:
      items: int `[P, 2]`, which texts.
      votes: `[P, 3]`, how many put the first before, the second before, and neither.
    """

    items: Numbers
    votes: Numbers


class Division(NamedTuple):
    """One division of a data set.

    Attributes:
      texts: int `[N]`, the texts of the division among all items.
      in_pool: bool `[N]`, whether the pool has the text.
      pool: pairs that may be asked; items index `texts`.
      judged: int `[E]`, the texts that pairs to judge by have, as an index of `texts`.
      known: held-out pairs of texts that the pool has too; items index `judged`, here and below.
      new: pairs of texts of which the pool has neither.
      joint: `JOINT_PAIRS` pairs of `new` that somebody decided, some of them repeatedly.
    """

    texts: Numbers
    in_pool: Numbers
    pool: Votes
    judged: Numbers
    known: Votes
    new: Votes
    joint: Votes


def load_divisions(
    name: str, seeds: Sequence[int], *, data_dir: str | None, held_out_pairs: int
) -> tuple[list[Item], Division]:
    """Divides a data set, once a seed, as `load_judgements` does.

    Args:
      name: of the data set.
      seeds: S seeds.
      data_dir: folder of the data; None = that which SHATTER_DATA_DIR names.
      held_out_pairs: most pairs of new items, drawn at random, and of known ones a quarter as
        many; 0 = all.

    Returns:
      All texts, each with its prompt, and the divisions with a leading axis S on every array,
      filled up to one size: by the first text, and by pairs without votes.

    Raises:
      UsageError: if the data set is unknown or its files cannot be used.
    """
    divisions = []
    items: dict[Item, int] = {}
    for seed in seeds:
        judgements = load_judgements(name, seed=seed, data_dir=data_dir)
        rng = np.random.default_rng((seed, 1))
        divisions.append(
            divide(judgements.train, judgements.known, judgements.new, items, rng, held_out_pairs)
        )
    return list(items), _stacked(divisions)


def divide(
    train: Sequence[Row],
    known: Sequence[Row],
    new: Sequence[Row],
    items: dict[Item, int],
    rng: np.random.Generator,
    held_out_pairs: int,
) -> Division:
    """One division; see `load_divisions`.

    Args:
      train: rows of the pool.
      known: held-out rows of items that the pool has.
      new: rows of new items.
      items: numbers of all texts so far; new ones are added.
      rng: draws the pairs to judge by.
      held_out_pairs: as in `load_divisions`.

    Returns:
      The division.
    """
    local: dict[Item, int] = {}
    pool = _votes(to_pairs(train), local)
    num_in_pool = len(local)
    of_known, of_new = (
        _some(_votes(to_pairs(rows), local), rng, most)
        for rows, most in ((known, -(-held_out_pairs // 4)), (new, held_out_pairs))
    )
    judged = np.unique(np.concatenate([of_known.items.ravel(), of_new.items.ravel()]))
    of_known, of_new = (
        Votes(np.searchsorted(judged, part.items), part.votes) for part in (of_known, of_new)
    )
    drawn = rng.choice(np.flatnonzero(of_new.votes[:, :2].sum(axis=1) > 0), JOINT_PAIRS)
    joint = Votes(of_new.items[drawn], of_new.votes[drawn])
    texts = np.array([items.setdefault(item, len(items)) for item in local])
    in_pool = np.arange(len(local)) < num_in_pool
    return Division(texts, in_pool, pool, judged, of_known, of_new, joint)


def _votes(pairs: Pairs, local: dict[Item, int]) -> Votes:
    numbers = np.array([local.setdefault(item, len(local)) for item in pairs.items])
    return Votes(numbers[pairs.compared], pairs.votes.astype(np.float32))


def _some(votes: Votes, rng: np.random.Generator, most: int) -> Votes:
    num = len(votes.votes)
    rows = np.sort(rng.permutation(num)[: most or num])
    return Votes(votes.items[rows], votes.votes[rows])


def _stacked(divisions: Sequence[Division]) -> Division:
    """The divisions as one, every array filled up with zeros to the largest."""

    def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
        size = max(map(len, arrays))
        pads = [(0, size - len(array)) for array in arrays]
        return np.stack(
            [
                np.pad(array, (pad, *((0, 0),) * (array.ndim - 1)))
                for array, pad in zip(arrays, pads, strict=True)
            ]
        )

    return jax.tree.map(lambda *arrays: stacked(arrays), *divisions)
