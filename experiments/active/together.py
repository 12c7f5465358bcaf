"""Puts the results of all data sets of a run folder into one table.

python -m experiments.active.together --run_dir=runs/active
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.active.summary import PARTS
from experiments.active.tables import compared, four
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console


@dataclasses.dataclass(frozen=True)
class Config:
    """Print one table, in Markdown, of all data sets that a run folder has."""

    run_dir: str = "runs/active"
    """The run folder of `experiments.active.run`; its subfolders are the data sets."""


def rows_of(folder: Path) -> list[list[str]]:
    """Returns the table's rows, the first with the titles.

    Args:
      folder: the run folder.

    Returns:
      A row for every data set, learner and arm.

    Raises:
      UsageError: if no data set has a summary.
    """
    files = sorted(folder.glob("*/summary.json"))
    if not files:
        raise UsageError(
            f"--run_dir={folder} has no subfolder with a summary.json: run experiments.active.run "
            "with the same --run_dir first"
        )
    parts = {"sixteenth": "1/16", "eighth": "1/8", "quarter": "1/4", "all": "all"}
    titles = ["data set", "learner", "arm", "seeds", "labels"]
    titles += [text for part in PARTS for text in (f"at {parts[part]}", "less random")]
    titles += ["labels to random's quarter (seeds that never)", "times fewer [95%]"]
    titles += ["Brier score less random's", "calibration error less random's"]
    summaries = [(file.parent.name, json.loads(file.read_text())) for file in files]
    return [titles, *(_cells(name, row) for name, summary in summaries for row in summary)]


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    level = row["levels"]["quarter"]
    return [
        name,
        row["ensemble"],
        row["arm"],
        str(row["num_seeds"]),
        str(row["budget"]),
        *(text for part in PARTS for text in compared(row["at"][part])),
        level["text"],
        level["ratio_text"],
        *(four(row["calibration"][measure]) for measure in ("brier", "calibration_error")),
    ]


def show(config: Config) -> None:
    """Prints the table.

    Args:
      config: the config.

    Raises:
      UsageError: if no data set has results.
    """
    titles, *rows = rows_of(Path(config.run_dir))
    console = open_console()
    for cells in (titles, ["---"] * len(titles), *rows):
        console.print(f"| {' | '.join(cells)} |", soft_wrap=True, markup=False)


if __name__ == "__main__":
    binary.main(Config, show)
