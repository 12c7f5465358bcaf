"""Three data sets of human judgements of texts, as rows to train on and rows to judge by.

`python -m experiments.judgements.datasets --dataset=ukp_humour --folder=FOLDER` writes the files.

A pair of texts with its votes becomes one row an answer: first, second or equal (a tie, ranks
(1, 1)), weighted by how many gave it. An item is a text under its prompt.
"""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.common import sources
from experiments.common.source_files import SOURCES
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console
from shatter.data import Row, write_rows

NEW_ITEMS = 0.2  # of all items, or of all debate sides
KNOWN_PAIRS = 0.1  # of the pairs of the other items

# Captions were rated one by one; their pairs and votes are ours.
PAIRS_PER_CAPTION = 2  # drawn; each caption is then in about twice as many
MAX_RATERS = 10  # of a pair, so that captions with many ratings do not drown the others

Unit = TypeVar("Unit", str, tuple[str, ...])

ANSWERS = ((1, 2), (2, 1), (1, 1))  # ranks of: first, second, equal


class Judgements(NamedTuple):
    """A data set, split.

    Attributes:
      train: rows to learn from.
      known: held-out pairs of items that `train` shows too.
      new: pairs of items of which `train` shows neither.
      attribution: whom to name when figures or texts of it are shown.
    """

    train: list[Row]
    known: list[Row]
    new: list[Row]
    attribution: str


class Pair(NamedTuple):
    """Two texts under one prompt; votes: first, second and, where it could be said, equal."""

    prompt: str
    completions: tuple[str, str]
    votes: tuple[float, ...]
    source: str


def load_judgements(name: str, *, seed: int = 0, data_dir: str | Path | None = None) -> Judgements:
    """Reads and splits a data set.

    `ukp_humour`: which of two short texts is funnier. No prompt. A fifth of the texts is new.

    `ukp_convarg`: which of two arguments for one side of a debate convinces more, or equally.
    Prompt: the debate and the side. A fifth of the sides is new, with all its arguments.

    `newyorker_captions`: captions of a cartoon, each rated unfunny, somewhat funny or funny by many
    people. Prompt: the cartoon in words. A fifth of the captions is new. Pairs are drawn, and their
    votes are expected counts (ours): with a_k the share of ratings k of caption A, two independent
    raters put A first with chance sum_{k > l} a_k b_l and neither with sum_k a_k b_k, times the
    number of ratings of the less rated caption, at most `MAX_RATERS`. A caption's ratings are dealt
    at random to the pairs it is in, so that no rating is used twice: pairs are independent, and
    those of `known` show nothing that was learnt from.

    A tenth of the pairs that are left is known; a pair whose item would thereby vanish from `train`
    stays there. Pairs of a new and another item are in no part.

    Args:
      name: one of `DATASETS`.
      seed: seed of numpy's default generator, for the split, the pairs and the ratings.
      data_dir: folder of the data; None or empty = that which SHATTER_DATA_DIR names.

    Returns:
      The rows.

    Raises:
      UsageError: if the name is unknown, or a file is missing or not as published.
    """
    binary.choose("data set", (name,), DATASETS)
    rng = np.random.default_rng(seed)
    try:
        parts = _LOADERS[name](rng, data_dir)
    except sources.SourceError as error:
        raise UsageError(str(error)) from error
    train, known, new = ([row for pair in part for row in pair_rows(pair)] for part in parts)
    return Judgements(train, known, new, _attribution(name))


def write_judgements(folder: str | Path, judgements: Judgements) -> None:
    """Writes train.jsonl, known.jsonl and new.jsonl, which `shatter.data.read_rows` reads.

    Args:
      folder: where they go; made if it is missing.
      judgements: the rows.
    """
    for part in ("train", "known", "new"):
        write_rows(Path(folder) / f"{part}.jsonl", getattr(judgements, part))


def pair_rows(pair: Pair) -> list[Row]:
    """One row for each answer that somebody gave, in the order of `ANSWERS`."""
    return [
        Row(pair.prompt, pair.completions, ranks, float(count), None, None, pair.source, pair.votes)
        for ranks, count in zip(ANSWERS, pair.votes, strict=False)
        if count > 0
    ]


def split_pairs(
    pairs: Sequence[Pair], rng: np.random.Generator, *, by_prompt: bool = False
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Splits pairs into train, known and new.

    Args:
      pairs: the pairs.
      rng: draws the new items, then the known pairs.
      by_prompt: whether prompts are new, each with all its items, instead of items.

    Returns:
      The three parts, each in the order of `pairs`.
    """

    def units(pair: Pair) -> list[tuple[str, ...]]:
        return [(pair.prompt,)] if by_prompt else _items(pair)

    new_units = _draw(dict.fromkeys(unit for pair in pairs for unit in units(pair)), rng)
    num_new = [sum(unit in new_units for unit in units(pair)) for pair in pairs]
    new = [pair for pair, n in zip(pairs, num_new, strict=True) if n == len(units(pair))]
    train, known = _split_known([p for p, n in zip(pairs, num_new, strict=True) if n == 0], rng)
    return train, known, new


def caption_votes(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Expected votes on a pair of captions, see `load_judgements`.

    Args:
      first: `[3]`, counts of the ratings of the first caption, the worst first.
      second: `[3]`, those of the second.

    Returns:
      Votes for the first, the second and neither; their sum is the number of raters.
    """
    num_raters = min(first.sum(), second.sum(), MAX_RATERS)
    table = num_raters * np.outer(first, second) / max(first.sum() * second.sum(), 1)
    return float(np.tril(table, -1).sum()), float(np.triu(table, 1).sum()), float(np.trace(table))


def _humour(
    rng: np.random.Generator, data_dir: str | Path | None
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    items = _json_lines(sources.locate("ukp_humour_items", data_dir))
    texts = {str(item["id"]): item["text"].strip() for item in items}
    path = sources.locate("ukp_humour_pairs", data_dir)
    with path.open(newline="", encoding="utf-8") as file:
        pairs = [
            Pair(
                "",
                (texts[record["a"]], texts[record["b"]]),
                (int(record["votes_a"]), int(record["votes_b"])),
                f"{path.name}:{number}",
            )
            for number, record in enumerate(csv.DictReader(file), start=2)
        ]
    return split_pairs(_merged(pairs), rng)


def _convarg(
    rng: np.random.Generator, data_dir: str | Path | None
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    prompts = {
        topic["topic"]: f"{topic['title']}\nStance: {topic['stance']}\nArgument:"
        for topic in _json_lines(sources.locate("ukp_convarg_topics", data_dir))
    }
    arguments = _json_lines(sources.locate("ukp_convarg_arguments", data_dir))
    texts = {argument["id"]: f" {argument['text'].strip()}" for argument in arguments}
    path = sources.locate("ukp_convarg_pairs", data_dir)
    pairs = [
        Pair(
            prompts[record["topic"]],
            (texts[record["a"]], texts[record["b"]]),
            tuple(record["votes"]),
            f"{path.name}:{number}",
        )
        for number, record in enumerate(_json_lines(path), start=1)
    ]
    return split_pairs(_merged(pairs), rng, by_prompt=True)


def _captions(
    rng: np.random.Generator, data_dir: str | Path | None
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    path = sources.locate("newyorker_captions", data_dir)
    about = sources.locate("newyorker_contests", data_dir).read_text(encoding="utf-8")
    cartoons: dict[str, str] = json.loads(about)["cartoon"]
    ratings: dict[str, dict[str, np.ndarray]] = {}
    for record in _json_lines(path):
        rated = ratings.setdefault(str(record["contest"]), {})
        rated[f" {record['caption'].strip()}"] = np.array(record["ratings"])
    train, known, new = [], [], []
    for contest, rated in ratings.items():
        prompt = f"Cartoon: {cartoons[contest].removeprefix('tags: ')}\nCaption:"
        new_texts = _draw(rated, rng)
        old_texts = [text for text in rated if text not in new_texts]
        source = f"{path.name}, contest {contest}"
        old, some_new = (
            [Pair(prompt, couple, votes, source) for couple, votes in _voted(texts, rated, rng)]
            for texts in (old_texts, list(new_texts))
        )
        some_train, some_known = _split_known(old, rng)
        train += some_train
        known += some_known
        new += some_new
    return train, known, new


_LOADERS: dict[str, Callable[..., tuple[list[Pair], list[Pair], list[Pair]]]] = {
    "ukp_humour": _humour,
    "newyorker_captions": _captions,
    "ukp_convarg": _convarg,
}
DATASETS = tuple(_LOADERS)


def _attribution(name: str) -> str:
    named = {
        f"{source.attribution} ({source.licence})"
        for source in SOURCES.values()
        if source.folder == name
    }
    return f"{name}: {'; '.join(sorted(named))}"


def _items(pair: Pair) -> list[tuple[str, ...]]:
    return [(pair.prompt, completion) for completion in pair.completions]


def _draw(units: Iterable[Unit], rng: np.random.Generator) -> dict[Unit, None]:
    """The new ones of distinct units, as the keys of a dict: in a reproducible order."""
    ordered = list(units)
    order = rng.permutation(len(ordered))[: round(NEW_ITEMS * len(ordered))]
    return dict.fromkeys(ordered[i] for i in sorted(order))


def _split_known(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """Train and known; a pair whose item no pair of train shows goes back to train."""
    order = rng.permutation(len(pairs))
    num_known = round(KNOWN_PAIRS * len(pairs))
    train = set(order[num_known:].tolist())
    shown = {item for i in train for item in _items(pairs[i])}
    for i in order[:num_known].tolist():
        if not shown.issuperset(_items(pairs[i])):
            train.add(i)
            shown.update(_items(pairs[i]))
    known = [pair for i, pair in enumerate(pairs) if i not in train]
    return [pairs[i] for i in sorted(train)], known


def _couples(texts: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Each text with the next, around `PAIRS_PER_CAPTION` random circles; no couple twice."""
    couples: dict[frozenset[str], tuple[str, str]] = {}
    for _ in range(PAIRS_PER_CAPTION if len(texts) > 1 else 0):
        circle = [texts[i] for i in rng.permutation(len(texts))]
        for couple in zip(circle, circle[1:] + circle[:1], strict=True):
            couples.setdefault(frozenset(couple), couple)
    return list(couples.values())


def _voted(
    texts: Sequence[str], ratings: dict[str, np.ndarray], rng: np.random.Generator
) -> list[tuple[tuple[str, str], tuple[float, float, float]]]:
    """Couples of captions with votes from ratings that no other couple gets."""
    couples = _couples(texts, rng)
    to_come = Counter(text for couple in couples for text in couple)
    left = {text: ratings[text] for text in texts}

    def deal(text: str) -> np.ndarray:
        part = rng.multivariate_hypergeometric(left[text], left[text].sum() // to_come[text])
        left[text] = left[text] - part
        to_come[text] -= 1
        return part

    return [((a, b), caption_votes(deal(a), deal(b))) for a, b in couples]


def _merged(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair for every two texts: items that are the same text under two ids become one item."""
    merged: dict[tuple[str, frozenset[str]], Pair] = {}
    for pair in pairs:
        first, second = pair.completions
        key = pair.prompt, frozenset(pair.completions)
        same = merged.setdefault(key, pair)
        if same is not pair and first != second:
            a, b, *equal = pair.votes
            votes = pair.votes if same.completions == pair.completions else (b, a, *equal)
            total = tuple(x + y for x, y in zip(same.votes, votes, strict=True))
            merged[key] = same._replace(votes=total)
    return [pair for (_, texts), pair in merged.items() if len(texts) == 2]


def _json_lines(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a data set of human judgements as train.jsonl, known.jsonl and new.jsonl."""

    dataset: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg."""

    folder: str = "runs/judgements"
    """Where the files go."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    seed: int = 0
    """Seed of the split."""


def export(config: Config) -> None:
    """Writes the files and says what is in them.

    Args:
      config: the config.

    Raises:
      UsageError: if the data is missing; the message says what to pass.
    """
    found = load_judgements(config.dataset, seed=config.seed, data_dir=config.data_dir)
    write_judgements(config.folder, found)
    console = open_console()
    for part in ("train", "known", "new"):
        num = len(getattr(found, part))
        console.print(f"{Path(config.folder) / part}.jsonl: {num:,} rows")
    console.print(f"Data: {found.attribution}")


if __name__ == "__main__":
    binary.main(Config, export)
