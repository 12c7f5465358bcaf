"""Data sets of human judgements of texts, as rows to learn from and rows to evaluate by.

`python -m experiments.judgements.datasets --dataset=ukp_humour --folder=FOLDER` writes the files.

A pair of texts with its votes becomes one row per answer: first, second or equal (a tie, ranks
(1, 1)), whose weight is the number of people who gave the answer. An item is a text under its
prompt.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import sources
from experiments.common.texts import json_lines, load_arguments, load_statements
from experiments.judgements.captions import voted_pairs
from experiments.judgements.splits import Pair, Parts, draw_new, split_known, split_pairs
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console
from shatter.data import Row, write_rows

ANSWERS = ((1, 2), (2, 1), (1, 1))  # ranks of: first, second, equal

Loader = Callable[[np.random.Generator, str | Path | None], Parts]


class Judgements(NamedTuple):
    """A data set, split.

    Attributes:
      train: rows to learn from.
      known: rows on held-out pairs of items that `train` shows too.
      new: rows on pairs of items neither of which `train` shows.
      attribution: whom to name when figures or texts of it are shown.
    """

    train: list[Row]
    known: list[Row]
    new: list[Row]
    attribution: str


def load_judgements(name: str, *, seed: int = 0, data_dir: str | Path | None = None) -> Judgements:
    """Reads and splits a data set.

    `ukp_humour`: which of two short texts is funnier. There is no prompt. A fifth of the texts is
    new.

    `ukp_convarg`: which of two arguments for the same side of a debate is more convincing, or
    whether both are equally so. The prompt names the debate and the side. A fifth of the sides is
    new, with all its arguments.

    `newyorker_captions`: captions of a cartoon, each rated unfunny, somewhat funny or funny by many
    people. The prompt describes the cartoon. A fifth of the captions is new. Pairs are drawn, and
    have expected votes (`captions.caption_votes`). The ratings of a caption are dealt at random to
    its pairs, and no rating is used twice; so pairs are independent, and those of `known` tell
    nothing about the pairs to learn from.

    `pandalm`: which of two answers of instruction-tuned models to a prompt is better, by three
    annotators each of whom could say that neither is. A fifth of the prompts is new.

    `survey_opinions`: which of two answers to a question of a survey more people gave. The votes
    are the people who gave one of the two, by the weighted shares. A fifth of the questions is new.

    `polis`: whether people agree with a citizen's statement; those who passed are votes for
    neither. The prompt holds the conversation's topic and the statement, and the texts are "agree"
    and "disagree". A fifth of the statements is new, and no pair is known.

    A tenth of the pairs of old items is known, but a pair stays in `train` if its item would
    otherwise vanish from there. Pairs of a new and an old item are in no part.

    Args:
      name: one of `DATASETS`.
      seed: the seed of numpy's default generator, for the split, the pairs and the ratings.
      data_dir: the data folder; None or empty = the one that SHATTER_DATA_DIR names.

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
    return Judgements(train, known, new, sources.attribution(name))


def write_judgements(folder: str | Path, judgements: Judgements) -> None:
    """Writes train.jsonl, known.jsonl and new.jsonl, which `shatter.data.read_rows` reads.

    Args:
      folder: the folder of the files, which is made if it is missing.
      judgements: the rows.
    """
    for part in ("train", "known", "new"):
        write_rows(Path(folder) / f"{part}.jsonl", getattr(judgements, part))


def pair_rows(pair: Pair) -> list[Row]:
    """Returns one row for each answer that somebody gave, in the order of `ANSWERS`."""
    return [
        Row(pair.prompt, pair.completions, ranks, float(count), None, None, pair.source, pair.votes)
        for ranks, count in zip(ANSWERS, pair.votes, strict=False)
        if count > 0
    ]


def _humour(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    items = json_lines(sources.locate("ukp_humour_items", data_dir))
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


def _convarg(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    prompts, texts = load_arguments(data_dir)
    path = sources.locate("ukp_convarg_pairs", data_dir)
    pairs = [
        Pair(
            prompts[record["topic"]],
            (texts[record["a"]], texts[record["b"]]),
            tuple(record["votes"]),
            f"{path.name}:{number}",
        )
        for number, record in enumerate(json_lines(path), start=1)
    ]
    return split_pairs(_merged(pairs), rng, by_prompt=True)


def _captions(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    path = sources.locate("newyorker_captions", data_dir)
    about = sources.locate("newyorker_contests", data_dir).read_text(encoding="utf-8")
    cartoons: dict[str, str] = json.loads(about)["cartoon"]
    ratings: dict[str, dict[str, np.ndarray]] = {}
    for record in json_lines(path):
        of_contest = ratings.setdefault(str(record["contest"]), {})
        of_contest[f" {record['caption'].strip()}"] = np.array(record["ratings"])
    parts = Parts([], [], [])
    for contest, of_contest in ratings.items():
        prompt = f"Cartoon: {cartoons[contest].removeprefix('tags: ')}\nCaption:"
        new_texts = draw_new(of_contest, rng)
        old_texts = [text for text in of_contest if text not in new_texts]
        source = f"{path.name}, contest {contest}"
        old, new = (
            [
                Pair(prompt, couple, votes, source)
                for couple, votes in voted_pairs(texts, of_contest, rng)
            ]
            for texts in (old_texts, list(new_texts))
        )
        train, known = split_known(old, rng)
        parts.train.extend(train)
        parts.known.extend(known)
        parts.new.extend(new)
    return parts


def _pandalm(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    path = sources.locate("pandalm", data_dir)
    pairs = []
    for number, record in enumerate(json_lines(path), start=1):
        first, second = (f" {str(text).strip()}" for text in record["completions"])
        votes = tuple(record["answers"].count(answer) for answer in (1, 2, 0))
        pairs.append(
            Pair(f"{record['prompt']}\nAnswer:", (first, second), votes, f"{path.name}:{number}")
        )
    return split_pairs(_merged(pairs), rng, by_prompt=True)


def _survey(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    path = sources.locate("shares", data_dir)
    pairs = [
        Pair(
            f"{record['question']}\nAnswer:",
            (f" {record['options'][first]}", f" {record['options'][second]}"),
            tuple(record["n_eff"] * record["distribution"][option] for option in (first, second)),
            f"{path.name}:{number}",
        )
        for number, record in enumerate(json_lines(path), start=1)
        if record["group"]["attribute"] == "all"
        for first, second in combinations(range(len(record["options"])), 2)
    ]
    return split_pairs(_merged(pairs), rng, by_prompt=True)


def _polis(rng: np.random.Generator, data_dir: str | Path | None) -> Parts:
    prompts = load_statements(data_dir).prompts
    path = sources.locate("polis_shares", data_dir)
    pairs = [
        Pair(
            prompts[record["conversation"], record["id"]],
            (" agree", " disagree"),
            tuple(record["n"] * share for share in record["distribution"]),
            f"{path.name}:{number}",
        )
        for number, record in enumerate(json_lines(path), start=1)
        if record["group"] == "all"
    ]
    return split_pairs(_merged(pairs), rng, by_prompt=True)


_LOADERS: dict[str, Loader] = {
    "ukp_humour": _humour,
    "newyorker_captions": _captions,
    "ukp_convarg": _convarg,
    "pandalm": _pandalm,
    "survey_opinions": _survey,
    "polis": _polis,
}
DATASETS = tuple(_LOADERS)


def _merged(pairs: Iterable[Pair]) -> list[Pair]:
    """Adds up the votes on the same two texts, which may have several ids in the files."""
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a data set of human judgements as train.jsonl, known.jsonl and new.jsonl."""

    dataset: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg, pandalm, survey_opinions, polis."""

    folder: str = "runs/judgements"
    """Folder for the files."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    seed: int = 0
    """Seed of the split."""


def export(config: Config) -> None:
    """Writes the files and says how many rows are in each.

    Args:
      config: the config.

    Raises:
      UsageError: if data is missing; the message says what to pass.
    """
    judgements = load_judgements(config.dataset, seed=config.seed, data_dir=config.data_dir)
    write_judgements(config.folder, judgements)
    console = open_console()
    for part in ("train", "known", "new"):
        num_rows = len(getattr(judgements, part))
        console.print(f"{Path(config.folder) / part}.jsonl: {num_rows:,} rows")
    console.print(f"Data: {judgements.attribution}")


if __name__ == "__main__":
    binary.main(Config, export)
