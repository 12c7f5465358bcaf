"""The tables that a run prints."""

from rich.table import Table

from experiments.active.config import Config
from experiments.active.summary import PARTS
from experiments.common.intervals import Interval

MEASURES = (
    "new_log_loss",
    "new_accuracy",
    "known_log_loss",
    "known_accuracy",
    "new_brier",
    "new_calibration_error",
    "joint_log_loss",
    "disagreement",
)


def tables(config: Config, rows: list[dict]) -> list[Table]:
    """Returns a table of labels needed and one of quality.

    Args:
      config: the config.
      rows: of `summarise`, of one kind of ensemble.
    """
    return [_labels(config, rows), _quality(config, rows)]


def _labels(config: Config, rows: list[dict]) -> Table:
    first = rows[0]
    table = Table(
        title=f"{config.dataset}, {first['ensemble']}: {first['num_seeds']} seeds, "
        f"{first['budget']} labels; new items",
        caption="labels needed for what random reaches on average with n labels (share of seeds "
        "that never reach it); how many times fewer than random, of means over seeds [95%, "
        "paired]; nats a vote",
    )
    table.add_column("arm")
    for part in PARTS:
        table.add_column(f"at {first['at'][part]['labels']}")
        table.add_column("less random")
    table.add_column("over the run, less random")
    for part in PARTS:
        level = first["levels"][part]
        table.add_column(f"to {level['level']:.4f} (n = {first['at'][part]['labels']})")
        table.add_column("times fewer")
    for row in rows:
        at = [text for part in PARTS for text in compared(row["at"][part])]
        levels = [row["levels"][part][key] for part in PARTS for key in ("text", "ratio_text")]
        table.add_row(row["arm"], *at, four(row["mean_difference"]), *levels)
    return table


def _quality(config: Config, rows: list[dict]) -> Table:
    first = rows[0]
    table = Table(title=f"{config.dataset}, {first['ensemble']}: before and after, mean [95%]")
    names = [name for name in MEASURES if name in first["before"]]
    for title in ("arm", *names, "answers that decided"):
        table.add_column(title)
    for row in rows:
        after = [four(row["after"][name]) for name in names]
        table.add_row(row["arm"], *after, f"{row['after']['decided']['mean']:.0f}")
    before = [f"{first['before'][name]['mean']:.4f}" for name in names]
    table.add_row("(before)", *before, "0")
    return table


def compared(at: dict) -> tuple[str, str]:
    """Returns a log-loss and its difference from random's as text."""
    return f"{at['log_loss']['mean']:.4f}", four(at["difference"])


def four(value: Interval) -> str:
    """Returns a mean with its interval in four decimals."""
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
