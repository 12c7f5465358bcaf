"""The tables that a run prints."""

from rich.table import Table

from experiments.active.config import Config
from experiments.active.summary import LEVELS
from experiments.common.intervals import Interval

MEASURES = (
    "new_log_loss",
    "new_accuracy",
    "known_log_loss",
    "known_accuracy",
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
    for title in ("arm", "log-loss at the end", "less random", "on average over the run"):
        table.add_column(title)
    for name in LEVELS:
        level = first["levels"][name]
        table.add_column(f"to {level['level']:.4f} (n = {level['random_labels']})")
        table.add_column("times fewer")
    for row in rows:
        differences = [_four(row[name]) for name in ("end_difference", "mean_difference")]
        cells = [row["levels"][name][key] for name in LEVELS for key in ("text", "ratio_text")]
        table.add_row(row["arm"], _four(row["after"]["new_log_loss"]), *differences, *cells)
    return table


def _quality(config: Config, rows: list[dict]) -> Table:
    first = rows[0]
    table = Table(title=f"{config.dataset}, {first['ensemble']}: before and after, mean [95%]")
    for title in ("arm", *MEASURES, "answers that decided"):
        table.add_column(title)
    for row in rows:
        after = [_four(row["after"][name]) for name in MEASURES]
        table.add_row(row["arm"], *after, f"{row['after']['decided']['mean']:.0f}")
    before = [f"{first['before'][name]['mean']:.4f}" for name in MEASURES]
    table.add_row("(before)", *before, "0")
    return table


def _four(value: Interval) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
