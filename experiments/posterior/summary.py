"""The summary of a run and the tables that are printed of it."""

from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.posterior.config import Config

LAW_COLUMNS = {
    "reward": "E r",
    "kl": "KL(pi || p0)",
    "target_kl": "KL(p* || pi)",
    "entropy": "entropy",
}
CONSTRAINT_COLUMNS = {"satisfied": "satisfied", "distinct": "distinct of 100"}
INTERFACE_COLUMNS = {
    "return": "E log pi",
    "entropy": "entropy",
    "lacking": "lacking to V(root)",
    "soft_value": "V(root)",
}
WITH_INTERVAL = ("reward", "kl", "target_kl", "lacking")


def summary_row(key: tuple[str, str, str], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the means over seeds, with intervals, at the end of one arm.

    Args:
      key: setting, objective and arm.
      metrics: `[S, 1 + R]` each.
    """
    last = {name: mean_interval(values[:, -1]) for name, values in metrics.items()}
    return {"setting": key[0], "objective": key[1], "arm": key[2], **last}


def summary_table(config: Config, setting_name: str, summary: list[dict]) -> Table:
    """Returns the table of one setting: a row for every arm.

    Args:
      config: the config.
      setting_name: the setting.
      summary: rows of `summary_row`.
    """
    title = (
        f"{config.figure} ({setting_name}): after {config.num_steps} gradient steps of "
        f"{config.batch_size}"
    )
    caption = (
        f"means over {config.num_seeds} seeds [95%]; p* is the target of the arm's beta, or of the "
        "second beta where an objective has none"
    )
    columns = LAW_COLUMNS
    if config.figure == "constraints":
        columns = LAW_COLUMNS | CONSTRAINT_COLUMNS
    if config.figure == "interface":
        title = "interface: laws that a temperature leads to, with log pi as the reward"
        caption = f"means over {config.num_seeds} seeds [95%], nats"
        columns = INTERFACE_COLUMNS
    table = Table(title=title, caption=caption)
    for heading in ("objective", "arm"):
        table.add_column(heading)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in summary:
        if row["setting"] == setting_name:
            cells = [format_interval(row.get(n), interval=n in WITH_INTERVAL) for n in columns]
            table.add_row(row["objective"], row["arm"], *cells)
    return table
