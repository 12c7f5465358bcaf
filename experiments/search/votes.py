"""`python -m experiments.search.votes`: writes two halves of a data set's votes, for two judges.

A reward model is learned from each half by `shatter finetune --objective=reward_model`. A search
sees one of them, and the other stands in the place of the gold reward.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.judgements.datasets import DATASETS, load_judgements
from shatter.cli.common import binary
from shatter.cli.common.progress import open_console
from shatter.data import Row, write_rows

HALVES = ("first", "second")


@dataclasses.dataclass(frozen=True)
class Config:
    """Write first.jsonl and second.jsonl, the halves of a data set's votes, and new.jsonl.

    All votes on a pair are in one half, and a text may be in both. The pairs of new.jsonl are of
    texts that neither half shows.
    """

    dataset: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg, pandalm, survey_opinions, polis."""

    folder: str = "runs/votes"
    """Folder for the files."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    seed: int = 0
    """Seed of the division."""


def halves(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Divides rows at random into two halves of the pairs, in the order of the rows.

    Args:
      rows: one for every answer to a pair that somebody gave.
      seed: of numpy's default generator.

    Returns:
      The rows of the two halves.
    """
    pair_of = lambda row: (row.prompt, row.completions)
    pairs = list(dict.fromkeys(map(pair_of, rows)))
    order = np.random.default_rng(seed).permutation(len(pairs))
    is_first = {pairs[number] for number in order[: len(pairs) // 2]}
    first = [row for row in rows if pair_of(row) in is_first]
    return first, [row for row in rows if pair_of(row) not in is_first]


def export(config: Config) -> None:
    """Writes the files and says how many rows are in each.

    Args:
      config: the config.

    Raises:
      UsageError: if the data set is unknown, or a file is missing.
    """
    binary.choose("data set", (config.dataset,), DATASETS)
    judgements = load_judgements(config.dataset, seed=config.seed, data_dir=config.data_dir)
    parts = dict(zip(HALVES, halves(judgements.train, config.seed), strict=True))
    console = open_console()
    for name, rows in {**parts, "new": judgements.new}.items():
        file = Path(config.folder) / f"{name}.jsonl"
        write_rows(file, rows)
        console.print(f"{file}: {len(rows):,} rows")
    console.print(f"Data: {judgements.attribution}")


if __name__ == "__main__":
    binary.main(Config, export)
