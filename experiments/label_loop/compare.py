"""`python -m experiments.label_loop.compare`: the losses of two runs, paired by seed."""

import dataclasses
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.label_loop import coverage
from shatter import evaluation
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console

SEED = 0  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the pool's losses of two runs of label_loop with --coverage and several seeds."""

    first: str = ""
    """Required. Folder of a run (its --project)."""

    second: str = ""
    """Required. Folder of the run to compare it with."""


def losses_of(folder: Path) -> dict[str, dict[int, float]]:
    """Returns the pool's losses of a run: by seed, and by the number of labels.

    Raises:
      UsageError: if the folder has no such run.
    """
    files = sorted(folder.glob(f"seed*/{coverage.FILE}"))
    if not files:
        raise UsageError(
            f"{folder}: expected seed0/{coverage.FILE} and so on, found none: run "
            "`python -m experiments.label_loop.run` with --coverage and --num_seeds=2 or more"
        )
    return {
        file.parent.name: {r["labels"]: r["pool_loss"] for r in coverage.read_rounds(file.parent)}
        for file in files
    }


def table(first: dict[str, dict[int, float]], second: dict[str, dict[int, float]]) -> Table:
    """Returns the mean losses of two runs and their differences, paired by seed."""
    seeds = sorted(first.keys() & second.keys())
    labels = sorted(
        set.intersection(*(set(run[seed]) for run in (first, second) for seed in seeds))
    )
    both = [np.array([[run[seed][n] for n in labels] for seed in seeds]) for run in (first, second)]
    made = Table(title=f"{len(seeds)} seeds; nats a vote", title_justify="left")
    for name in ("labels", "first", "second", "first less second", "95%"):
        made.add_column(name, justify="right")
    parts = [(f"{n}", [run[:, k] for run in both]) for k, n in enumerate(labels)]
    for name, (one, other) in [*parts, ("mean", [run.mean(axis=1) for run in both])]:
        rng = np.random.default_rng(SEED)
        low, high = evaluation.bootstrap_interval(np.mean, one - other, rng=rng)
        means = [one.mean(), other.mean(), (one - other).mean()]
        made.add_row(name, *(f"{mean:.4f}" for mean in means), f"[{low:.4f}, {high:.4f}]")
    return made


def experiment(config: Config) -> None:
    """Prints the comparison."""
    binary.require(config, ("first", "second"), "--first=runs/arm --second=runs/random")
    first, second = (losses_of(Path(folder)) for folder in (config.first, config.second))
    if not first.keys() & second.keys():
        raise UsageError(
            f"--second: expected seeds of --first, {' '.join(first)}, found {' '.join(second)}"
        )
    open_console().print(table(first, second))


if __name__ == "__main__":
    binary.main(Config, experiment)
