"""Divides a data set into a pool of pairs that may be asked and held-out pairs to judge by."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.judgements.datasets import load_judgements
from shatter.cli.common.votes import Item, Pairs, to_pairs
from shatter.data import Row

AnyArray = Any
"""An array, of NumPy on the host and of JAX in the process."""
JOINT_PAIRS = 500  # of new items, for the joint log-loss and the members' disagreement


class Votes(NamedTuple):
    """Pairs of texts with votes. Pairs without votes are padding.

    Attributes:
      items: int `[P, 2]`, the two texts.
      votes: `[P, 3]`, the votes for the first, for the second, and for neither.
    """

    items: AnyArray
    votes: AnyArray


class Division(NamedTuple):
    """One division of a data set.

    Attributes:
      texts: int `[N]`, the division's texts, as indices of all items.
      in_pool: bool `[N]`, whether the pool has the text.
      pool: pairs that may be asked; their items are indices of `texts`.
      judged: int `[E]`, the texts of the pairs to judge by, as indices of `texts`.
      known: held-out pairs of texts that the pool has too; their items are indices of `judged`, as
        in `new` and `joint`. None = the data set has no such pairs.
      new: held-out pairs of texts of which the pool has neither.
      joint: `JOINT_PAIRS` pairs drawn with replacement from those of `new` that have a vote for one
        of the two.
    """

    texts: AnyArray
    in_pool: AnyArray
    pool: Votes
    judged: AnyArray
    known: Votes | None
    new: Votes
    joint: Votes


def load_divisions(
    name: str, seeds: Sequence[int], *, data_dir: str | None, held_out_pairs: int
) -> tuple[list[Item], Division]:
    """Divides a data set once a seed, as `load_judgements` does.

    Args:
      name: of the data set.
      seeds: S seeds.
      data_dir: folder of the data; None = the folder that SHATTER_DATA_DIR names.
      held_out_pairs: the largest number of pairs of new items, which are drawn at random; of known
        items a quarter as many; 0 = all.

    Returns:
      All texts, each with its prompt, and the divisions with a leading axis S on every array,
      padded to one size with the first text and with pairs without votes.

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
    stacked = _stacked(divisions)
    if stacked.known is not None and not stacked.known.votes.size:
        stacked = stacked._replace(known=None)  # `jax.lax.map` cannot cut arrays without rows
    return list(items), stacked


def divide(
    train: Sequence[Row],
    known: Sequence[Row],
    new: Sequence[Row],
    items: dict[Item, int],
    rng: np.random.Generator,
    held_out_pairs: int,
) -> Division:
    """Makes one of the divisions of `load_divisions`.

    Args:
      train: rows of the pool.
      known: held-out rows of items that the pool has.
      new: held-out rows of items that the pool does not have.
      items: the numbers of all texts so far; new texts are added to it.
      rng: draws the pairs to judge by.
      held_out_pairs: as in `load_divisions`.

    Returns:
      The division.
    """
    local: dict[Item, int] = {}
    pool = _votes(to_pairs(train), local)
    num_in_pool = len(local)
    of_known, of_new = (
        _at_most(size, _votes(to_pairs(rows), local), rng)
        for rows, size in ((known, -(-held_out_pairs // 4)), (new, held_out_pairs))
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
    numbers = np.array([local.setdefault(item, len(local)) for item in pairs.items], int)
    return Votes(numbers[pairs.compared], pairs.votes.astype(np.float32))


def _at_most(size: int, votes: Votes, rng: np.random.Generator) -> Votes:
    """Draws `size` pairs, or returns all of them if there are fewer or the size is 0."""
    num = len(votes.votes)
    rows = np.sort(rng.permutation(num)[: size or num])
    return Votes(votes.items[rows], votes.votes[rows])


def _stacked(divisions: Sequence[Division]) -> Division:
    """Stacks the divisions; every array is padded with zeros to the size of the largest."""

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
