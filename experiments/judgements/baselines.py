"""What a fine-tuned model is compared with, on the same rows, and how either is scored.

`python -m experiments.judgements.baselines` prints the figures of every data set.

A baseline is a utility u of texts in nats, P(A before B) = sig(u_A - u_B), fitted by maximum
likelihood with a Gaussian prior. `fit(train)` returns it as a function from rows to `[R, 2]`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
from rich.table import Table
from scipy.special import log_expit

from experiments.common.bradley_terry import fit_weights
from experiments.judgements.datasets import DATASETS, Judgements, load_judgements
from shatter.cli.common import binary
from shatter.cli.common.progress import open_console
from shatter.cli.common.votes import Floats, Ints, Item, Pairs, row_items, score, to_pairs
from shatter.data import Row

Utility = Callable[[Sequence[Row]], Floats]

SCORES = ("log_loss", "accuracy", "calibration_error", "share_kl")
BRADLEY_TERRY_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
NGRAM_RIDGES = (0.3, 1.0, 3.0, 10.0)
LENGTH_RIDGE = 0.01
WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (2, 3, 4)
FEWEST_TEXTS = 2  # that an n-gram must be in
HELD_PAIRS, HELD_ITEMS, HELD_PROMPTS = 0.1, 0.3, 0.2  # of the training rows, to choose a ridge by
FEWEST_PROMPTS = 10  # for whole prompts to be held out
TOLERANCE = 1e-6  # of the gradient, per vote
MAX_STEPS = 100  # of Newton's method; about 6 are needed


def bradley_terry(
    train: Sequence[Row], ridge: float | None = None, *, ties: float = 0.5
) -> Utility:
    """A utility for each item, 0 for others: the best that knows nothing of the text.

    Args:
      train: comparisons of two completions.
      ridge: precision of the prior on utilities, nats^-2; None = chosen among
        `BRADLEY_TERRY_RIDGES` by a tenth of the pairs.
      ties: votes that an equal vote adds to both sides. One half each is the usual reading, and it
        draws utilities together; 0 leaves ties out, as `score`'s log_loss does.

    Returns:
      The utility.

    Raises:
      ValueError: if a row is no comparison of two completions, or the ridge is not above 0.
    """
    pairs = to_pairs(train)
    wins = _wins(pairs, ties)
    features = scipy.sparse.eye(len(pairs.items), format="csr")
    if ridge is None:
        parts = _known_part(pairs)
        ridge = _chosen_ridge(features, pairs, wins, parts, BRADLEY_TERRY_RIDGES)
    utilities = _fit(features, pairs.compared, wins, ridge)
    table = dict(zip(pairs.items, utilities, strict=True))
    return lambda rows: _for_rows(
        rows, [[table.get(i, 0.0) for i in row_items(row)] for row in rows]
    )


def length(train: Sequence[Row], *, ties: float = 0.5) -> Utility:
    """Logistic regression on the number of characters and its logarithm.

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

    weights = _fit(features(pairs.items), pairs.compared, _wins(pairs, ties), LENGTH_RIDGE)
    return _text_utility(features, weights)


def ngrams(train: Sequence[Row], ridge: float | None = None, *, ties: float = 0.5) -> Utility:
    """Ridge logistic regression on which n-grams of words and characters a text has.

    Features: 1 for each n-gram that at least `FEWEST_TEXTS` training texts have, over the root of
    their number in the text; and the length and its logarithm, standardised.

    Args:
      train: comparisons of two completions.
      ridge: precision of the prior on weights, nats^-2; None = chosen among `NGRAM_RIDGES` by
        training pairs of items (of prompts where there are at least `FEWEST_PROMPTS`) that the
        others do not show, for new items are what it is for.
      ties: as in `bradley_terry`.

    Returns:
      The utility.

    Raises:
      ValueError: if a row is no comparison of two completions, or the ridge is not above 0.
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
        ridge = _chosen_ridge(matrix, pairs, wins, _new_part(pairs), NGRAM_RIDGES)
    return _text_utility(features, _fit(matrix, pairs.compared, wins, ridge))


def _wins(pairs: Pairs, ties: float) -> Floats:
    return pairs.votes[:, :2] + ties * pairs.votes[:, 2:]


def _for_rows(rows: Sequence[Row], utilities: object) -> Floats:
    return np.asarray(utilities, np.float64).reshape(len(rows), 2)


def _text_utility(
    features: Callable[[Sequence[Item]], scipy.sparse.csr_matrix], weights: Floats
) -> Utility:
    def utility(rows: Sequence[Row]) -> Floats:
        items = list(dict.fromkeys(item for row in rows for item in row_items(row)))
        table = dict(zip(items, features(items) @ weights, strict=True))
        return _for_rows(rows, [[table[item] for item in row_items(row)] for row in rows])

    return utility


def _lengths(items: Sequence[Item]) -> Floats:
    characters = np.array([len(text) for _, text in items], np.float64)
    return np.stack([characters, np.log(characters)], axis=1)


def _grams(text: str) -> set[str]:
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
    columns = [sorted(vocabulary[g] for g in _grams(text) if g in vocabulary) for _, text in items]
    sizes = np.array([len(c) for c in columns], np.int64)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.array([c for row in columns for c in row], np.int64)
    return scipy.sparse.csr_matrix((values, flat, ends), shape=(len(items), len(vocabulary)))


def _fit(features: scipy.sparse.csr_matrix, compared: Ints, wins: Floats, ridge: float) -> Floats:
    """Returns `fit_weights` with a ridge above 0, so that the fit exists; raises otherwise."""
    if not ridge > 0:
        raise ValueError(
            f"expected a ridge above 0, because without one a fit need not exist, found {ridge}"
        )
    return fit_weights(
        features, compared, wins, ridge=ridge, tolerance=TOLERANCE, max_steps=MAX_STEPS
    )


def _chosen_ridge(
    features: scipy.sparse.csr_matrix,
    pairs: Pairs,
    wins: Floats,
    parts: tuple[Ints, Ints],
    ridges: Sequence[float],
) -> float:
    """The ridge whose fit to the first part of the pairs has the least loss on the second."""
    fit, held = parts

    def loss(ridge: float) -> float:
        u = features @ _fit(features, pairs.compared[fit], wins[fit], ridge)
        gaps = u[pairs.compared[held, 0]] - u[pairs.compared[held, 1]]
        return float(-wins[held, 0] @ log_expit(gaps) - wins[held, 1] @ log_expit(-gaps))

    return min(ridges, key=loss)


def _known_part(pairs: Pairs) -> tuple[Ints, Ints]:
    order = np.random.default_rng(0).permutation(len(pairs.compared))
    num_held = round(HELD_PAIRS * len(order))
    return order[num_held:], order[:num_held]


def _new_part(pairs: Pairs) -> tuple[Ints, Ints]:
    rng = np.random.default_rng(0)
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs.items))
    if len(prompts) >= FEWEST_PROMPTS:
        held = {
            prompts[i] for i in rng.permutation(len(prompts))[: round(HELD_PROMPTS * len(prompts))]
        }
        is_held = np.array([prompt in held for prompt, _ in pairs.items])
    else:
        is_held = rng.random(len(pairs.items)) < HELD_ITEMS
    num_held = is_held[pairs.compared].sum(axis=1)
    return np.flatnonzero(num_held == 0), np.flatnonzero(num_held == 2)


BASELINES: dict[str, Callable[..., Utility]] = {
    "Bradley-Terry": bradley_terry,
    "n-grams": ngrams,
    "length": length,
}


def baseline_scores(
    judgements: Judgements, *, ties: float = 0.5
) -> dict[tuple[str, str], dict[str, float]]:
    """Fits every baseline to the training rows and scores it.

    Args:
      judgements: the data set.
      ties: as in `bradley_terry`.

    Returns:
      `score` by ("known" or "new", the baseline's name).
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
    """Baselines of the human judgements: mean and standard deviation over random splits."""

    dataset: tuple[str, ...] = DATASETS
    """Which data sets: ukp_humour, newyorker_captions, ukp_convarg."""

    data_dir: str | None = None
    """Folder with the human judgements; SHATTER_DATA_DIR if not given."""

    num_splits: int = 3
    """How many random splits."""

    seed: int = 0
    """The seed of the first."""

    ties: tuple[float, ...] = (0.5, 0.0)
    """Votes that an equal vote adds to both sides; where there are ties, each of them is shown."""


def print_baselines(config: Config) -> None:
    """Prints a table of every baseline's scores.

    Args:
      config: the config.

    Raises:
      UsageError: if a value cannot be, or data is missing; the message says how to mend it.
    """
    binary.choose("data set", config.dataset, DATASETS)
    binary.at_least(config, num_splits=1)
    if not config.ties or min(config.ties) < 0:
        raise binary.UsageError(f"--ties must be at least 0, found {config.ties}")
    console = open_console()
    for name in config.dataset:
        seeds = range(config.seed, config.seed + config.num_splits)
        splits = [load_judgements(name, seed=s, data_dir=config.data_dir) for s in seeds]
        has_ties = any(len(set(row.ranks)) == 1 for row in splits[0].train)
        titles = ("items", "baseline", "ties", *SCORES)
        table = Table(title=f"{splits[0].attribution}, {config.num_splits} splits: mean (sd); nats")
        for title in titles:
            table.add_column(title)
        for ties in config.ties if has_ties else config.ties[:1]:
            scores = [baseline_scores(split, ties=ties) for split in splits]
            for part, baseline in scores[0]:
                found = [one[part, baseline] for one in scores]
                columns = [[one[key] for one in found if key in one] for key in SCORES]
                cells = [f"{np.mean(c):.4f} ({np.std(c):.4f})" if c else "" for c in columns]
                table.add_row(part, baseline, f"{ties:g}" if has_ties else "", *cells)
        console.print(table)


if __name__ == "__main__":
    binary.main(Config, print_baselines)
