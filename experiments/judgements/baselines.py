"""Baselines for fine-tuned models: Bradley-Terry, n-grams and the length of a text.

`python -m experiments.judgements.baselines` prints their scores on every data set.

A baseline is a utility u of texts in nats, with P(A before B) = sig(u_A - u_B), fitted by maximum
likelihood with a Gaussian prior. `fit(train)` returns it as a function from R rows to `[R, 2]`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
from rich.table import Table

from experiments.judgements import regression
from experiments.judgements.datasets import DATASETS, Judgements, load_judgements
from shatter.cli.common import binary
from shatter.cli.common.progress import open_console
from shatter.cli.common.votes import Floats, Item, Pairs, row_items, score, to_pairs
from shatter.data import Row

Utility = Callable[[Sequence[Row]], Floats]

SCORES = ("log_loss", "accuracy", "calibration_error", "share_kl")
BRADLEY_TERRY_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
NGRAM_RIDGES = (0.3, 1.0, 3.0, 10.0)
LENGTH_RIDGE = 0.01
WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (2, 3, 4)
FEWEST_TEXTS = 2  # that must contain an n-gram for it to be a feature


def bradley_terry(
    train: Sequence[Row], ridge: float | None = None, *, ties: float = 0.5
) -> Utility:
    """Fits a utility for each item; it is the best prediction that does not read the text.

    Args:
      train: comparisons of two completions.
      ridge: the precision of the prior on utilities, nats^-2; None = chosen among
        `BRADLEY_TERRY_RIDGES` by a tenth of the pairs.
      ties: the votes that an equal vote adds to both sides. One half each is the usual reading,
        which draws utilities together; 0 leaves ties out, as the log_loss of `score` does.

    Returns:
      The utility; it is 0 for items that are not in `train`.

    Raises:
      ValueError: if a row does not compare two completions, or the ridge is not above 0.
    """
    pairs = to_pairs(train)
    wins = _wins(pairs, ties)
    features = scipy.sparse.eye(len(pairs.items), format="csr")
    if ridge is None:
        parts = regression.known_part(pairs)
        ridge = regression.choose_ridge(features, pairs, wins, parts, BRADLEY_TERRY_RIDGES)
    utilities = regression.fit(features, pairs.compared, wins, ridge)
    table = dict(zip(pairs.items, utilities, strict=True))
    return lambda rows: _for_rows(
        rows, [[table.get(item, 0.0) for item in row_items(row)] for row in rows]
    )


def length(train: Sequence[Row], *, ties: float = 0.5) -> Utility:
    """Fits a logistic regression on the number of characters and its logarithm.

    Args:
      train: comparisons of two completions.
      ties: as in `bradley_terry`.

    Returns:
      The utility.
    """
    pairs = to_pairs(train)
    numbers = _lengths(pairs.items)
    centre, scale = numbers.mean(axis=0), numbers.std(axis=0) + 1e-9

    def features(items: Sequence[Item]) -> scipy.sparse.csr_matrix:
        return scipy.sparse.csr_matrix((_lengths(items) - centre) / scale)

    wins = _wins(pairs, ties)
    weights = regression.fit(features(pairs.items), pairs.compared, wins, LENGTH_RIDGE)
    return _text_utility(features, weights)


def ngrams(train: Sequence[Row], ridge: float | None = None, *, ties: float = 0.5) -> Utility:
    """Fits a ridge logistic regression on the n-grams of words and characters in a text.

    An n-gram that at least `FEWEST_TEXTS` training texts contain is a feature, whose value is one
    over the root of their number in the text. The length and its logarithm are features too.

    Args:
      train: comparisons of two completions.
      ridge: the precision of the prior on weights, nats^-2; None = chosen among `NGRAM_RIDGES` by
        training pairs of items (of prompts if there are at least `regression.FEWEST_PROMPTS`) that
        the others do not show, because it is meant for new items.
      ties: as in `bradley_terry`.

    Returns:
      The utility.

    Raises:
      ValueError: if a row does not compare two completions, or the ridge is not above 0.
    """
    pairs = to_pairs(train)
    wins = _wins(pairs, ties)
    counts = Counter(gram for _, text in pairs.items for gram in _grams(text))
    known = [gram for gram, count in counts.items() if count >= FEWEST_TEXTS]
    vocabulary = {gram: column for column, gram in enumerate(known)}
    numbers = _lengths(pairs.items)
    centre, scale = numbers.mean(axis=0), numbers.std(axis=0) + 1e-9

    def features(items: Sequence[Item]) -> scipy.sparse.csr_matrix:
        standard = scipy.sparse.csr_matrix((_lengths(items) - centre) / scale)
        return scipy.sparse.hstack([standard, _bags(items, vocabulary)], format="csr")

    matrix = features(pairs.items)
    if ridge is None:
        parts = regression.new_part(pairs)
        ridge = regression.choose_ridge(matrix, pairs, wins, parts, NGRAM_RIDGES)
    return _text_utility(features, regression.fit(matrix, pairs.compared, wins, ridge))


def _wins(pairs: Pairs, ties: float) -> Floats:
    """Returns the votes for each item of a pair, `[P, 2]`."""
    return pairs.votes[:, :2] + ties * pairs.votes[:, 2:]


def _for_rows(rows: Sequence[Row], utilities: object) -> Floats:
    return np.asarray(utilities, np.float64).reshape(len(rows), 2)


def _text_utility(
    features: Callable[[Sequence[Item]], scipy.sparse.csr_matrix], weights: Floats
) -> Utility:
    """Returns the utility that is linear in features of texts."""

    def utility(rows: Sequence[Row]) -> Floats:
        items = list(dict.fromkeys(item for row in rows for item in row_items(row)))
        table = dict(zip(items, features(items) @ weights, strict=True))
        return _for_rows(rows, [[table[item] for item in row_items(row)] for row in rows])

    return utility


def _lengths(items: Sequence[Item]) -> Floats:
    """Returns the number of characters and its logarithm, `[N, 2]`."""
    characters = np.array([len(text) for _, text in items], np.float64)
    return np.stack([characters, np.log(characters)], axis=1)


def _grams(text: str) -> set[str]:
    """Returns the n-grams of words ("w ...") and of characters ("c ...") in a text."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    line = f" {' '.join(text.lower().split())} "
    of_words = {
        f"w {' '.join(words[i : i + n])}" for n in WORD_NGRAMS for i in range(len(words) - n + 1)
    }
    of_characters = {
        f"c {line[i : i + n]}" for n in CHARACTER_NGRAMS for i in range(len(line) - n + 1)
    }
    return of_words | of_characters


def _bags(items: Sequence[Item], vocabulary: dict[str, int]) -> scipy.sparse.csr_matrix:
    """Returns the features of n-grams, `[N, V]`."""
    columns = [sorted(vocabulary[g] for g in _grams(text) if g in vocabulary) for _, text in items]
    sizes = np.array([len(c) for c in columns], np.int64)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.array([c for row in columns for c in row], np.int64)
    return scipy.sparse.csr_matrix((values, flat, ends), shape=(len(items), len(vocabulary)))


BASELINES: dict[str, Callable[..., Utility]] = {
    "Bradley-Terry": bradley_terry,
    "n-grams": ngrams,
    "length": length,
}


def baseline_scores(
    judgements: Judgements, *, ties: float = 0.5
) -> dict[tuple[str, str], dict[str, float]]:
    """Fits every baseline to the training rows and scores it on the held-out ones.

    Args:
      judgements: the data set.
      ties: as in `bradley_terry`.

    Returns:
      The measures of `score` by ("known" or "new", the baseline's name).
    """
    parts = {"known": judgements.known, "new": judgements.new}
    utilities = {name: fit(judgements.train, ties=ties) for name, fit in BASELINES.items()}
    return {
        (part, name): score(rows, utility(rows))
        for part, rows in parts.items()
        for name, utility in utilities.items()
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """Score baselines on the human judgements: mean and standard deviation over random splits."""

    dataset: tuple[str, ...] = ("ukp_humour", "newyorker_captions", "ukp_convarg")
    """Data sets. Known: ukp_humour, newyorker_captions, ukp_convarg, pandalm, survey_opinions,
    polis."""

    data_dir: str | None = None
    """Folder with the human judgements; SHATTER_DATA_DIR if not given."""

    num_splits: int = 3
    """Number of random splits."""

    seed: int = 0
    """Seed of the first split; the others have the next seeds."""

    ties: tuple[float, ...] = (0.5, 0.0)
    """Votes that an equal vote adds to both sides. If a data set has ties, the table shows each of
    these values."""


def print_baselines(config: Config) -> None:
    """Prints a table of every baseline's scores for each data set.

    Args:
      config: the config.

    Raises:
      UsageError: if a flag has an impossible value, or data is missing; the message says what to
        do.
    """
    binary.choose("data set", config.dataset, DATASETS)
    binary.at_least(config, num_splits=1)
    if not config.ties or min(config.ties) < 0:
        raise binary.UsageError(f"--ties must be at least 0, found {config.ties}")
    console = open_console()
    for name in config.dataset:
        seeds = range(config.seed, config.seed + config.num_splits)
        splits = [load_judgements(name, seed=s, data_dir=config.data_dir) for s in seeds]
        console.print(_table(config, splits))


def _table(config: Config, splits: Sequence[Judgements]) -> Table:
    has_ties = any(len(set(row.ranks)) == 1 for row in splits[0].train)
    table = Table(title=f"{splits[0].attribution}, {config.num_splits} splits: mean (sd); nats")
    for title in ("items", "baseline", "ties", *SCORES):
        table.add_column(title)
    for ties in config.ties if has_ties else config.ties[:1]:
        scores = [baseline_scores(split, ties=ties) for split in splits]
        for part, baseline in scores[0]:
            of_splits = [measures[part, baseline] for measures in scores]
            columns = [[m[name] for m in of_splits if name in m] for name in SCORES]
            cells = [f"{np.mean(c):.4f} ({np.std(c):.4f})" if c else "" for c in columns]
            table.add_row(part, baseline, f"{ties:g}" if has_ties else "", *cells)
    return table


if __name__ == "__main__":
    binary.main(Config, print_baselines)
