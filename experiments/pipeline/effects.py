"""`python -m experiments.pipeline.effects`: what each part changes, averaged over the others."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console

FACTORS = ("nudge", "anchor_decay", "algorithm")
MEASURES = ("win_greedy", "win_rate", "kl", "entropy")

Cells = dict[tuple[str, ...], dict[str, np.ndarray]]
"""By the levels of `FACTORS`: measures `[S, 1 + R]`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Print how much a part changes, paired by seed, of one run or of several as a factorial.

    Parts are the nudge, the anchor's decay and the algorithm, with its way to a pair. A difference
    between two levels of a part is averaged over all combinations of the other parts.
    """

    folders: tuple[str, ...] = ()
    """Required. Folders of figures of `experiments.pipeline.run`, or of one setting of
    `experiments.online.run`, each with metrics.csv. Together they have all combinations, as the one
    run of one figure has."""

    algorithms: tuple[str, ...] = ()
    """Algorithms that count; not given = all that the folders have."""


def read_cells(folders: tuple[str, ...], algorithms: tuple[str, ...] = ()) -> Cells:
    """Reads the measures of all cells.

    Args:
      folders: those of the figures.
      algorithms: those that count; all if none is named.

    Returns:
      The cells; one that several folders have is of the last.

    Raises:
      UsageError: if a folder has no finished run, or a combination of levels is in none of them.
    """
    cells: Cells = {}
    for folder in map(Path, folders):
        if not (folder / "metrics.csv").is_file():
            raise UsageError(
                f"--folders={folder}: expected a finished figure with metrics.csv, found none: run "
                "`python -m experiments.pipeline.run` and name the folder that it prints"
            )
        config = json.loads((folder / "config.json").read_text())
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if row["metric"] in MEASURES and (not algorithms or row["arm"] in algorithms)
            ]
        for name, part in itertools.groupby(rows, lambda row: (row["setting"], row["arm"])):
            cells[_levels(config, *name)] = _measures([*part])
    unknown = set(algorithms) - {cell[-1].partition(",")[0] for cell in cells}
    if unknown:
        raise UsageError(
            f"--algorithms: expected some that the folders have, found {', '.join(sorted(unknown))}"
        )
    levels = [sorted({cell[place] for cell in cells}) for place in range(len(FACTORS))]
    missing = [cell for cell in itertools.product(*levels) if cell not in cells]
    if missing:
        named = ", ".join(f"{f}={v}" for f, v in zip(FACTORS, missing[0], strict=True))
        raise UsageError(f"--folders: expected all combinations, found none of {named}: run it too")
    return cells


def _levels(config: dict[str, Any], setting: str, algorithm: str) -> tuple[str, ...]:
    """Returns the levels of a cell; the setting's name has the value that its figure changes."""
    name, _, value = setting.partition("=")
    keys: tuple[str, ...] = ("nudge", "anchor_decay", "selection")  # online has no selection
    values = {key: str(config[key]) for key in keys if key in config}
    if value:
        values[name] = value
    if algorithm == "information_directed" and "selection" in values:
        algorithm = f"{algorithm}, {values['selection']}"
    return values["nudge"], values["anchor_decay"], algorithm


def _measures(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        of_seed = found.setdefault(row["metric"], {}).setdefault(int(row["seed"]), {})
        of_seed[int(row["step"])] = float(row["value"])
    return {
        measure: np.array([[v for _, v in sorted(of.items())] for _, of in sorted(seeds.items())])
        for measure, seeds in found.items()
    }


def effects(cells: Cells) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns the differences between the levels of every part, paired by seed.

    Args:
      cells: all combinations.

    Returns:
      What is compared, and by the name of a column `[S]`: measures after the last round, and of
      greedy decoding also the mean over rounds.
    """
    columns = {
        "greedy, mean over rounds": lambda m: m["win_greedy"][:, 1:].mean(axis=1),
        "greedy, end": lambda m: m["win_greedy"][:, -1],
        "samples, end": lambda m: m["win_rate"][:, -1],
        "KL to q, end": lambda m: m["kl"][:, -1],
        "entropy, end": lambda m: m["entropy"][:, -1],
    }
    found = []
    for place, factor in enumerate(FACTORS):
        levels = dict.fromkeys(cell[place] for cell in cells)
        for one, other in itertools.combinations(reversed(levels), 2):
            means = [
                {
                    name: np.mean([of(cells[c]) for c in cells if c[place] == level], axis=0)
                    for name, of in columns.items()
                }
                for level in (one, other)
            ]
            difference = {name: means[0][name] - means[1][name] for name in columns}
            found.append((f"{factor}: {one} less {other}", difference))
    return found


def experiment(config: Config) -> None:
    """Prints the table."""
    binary.require(config, ("folders",), "--folders runs/pipeline/nudge")
    rows = effects(read_cells(config.folders, config.algorithms))
    table = Table(title="paired by seed, means [95%]")
    for heading in ("", *(rows[0][1] if rows else ())):
        table.add_column(heading)
    for name, columns in rows:
        table.add_row(name, *(format_interval(mean_interval(v)) for v in columns.values()))
    open_console().print(table)


if __name__ == "__main__":
    binary.main(Config, experiment)
