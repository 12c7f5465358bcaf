"""The summary of a run and the tables that are printed of it."""

from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain
from experiments.rlhf.objectives import OBJECTIVES
from shatter.evaluation import queries_to_level

COST_COLUMNS = ("steps", "never", "own end", "ms a step", "ms to level")
LEVEL = 0.5  # the share of the pretrained model's KL(q || p0) whose cost is reported
Results = dict[tuple[str, str], dict[str, np.ndarray]]
"""Metrics `[S, 1 + R, ...]` by objective and arm."""
MEASURES = {
    "kl": "KL(q || pi)",
    "optimum_kl": "KL(end || pi)",
    "total_variation": "TV",
    "entropy": "entropy",
    "log_score": "log score",
    "win_rate": "win rate",
    "kl_from_pretrained": "KL(pi || p0)",
    "gold_reward": "gold",
}


def curves_of(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the metrics that have one number for each measurement."""
    return {name: values for name, values in metrics.items() if values.ndim == 2}


def summary_row(
    objective: str,
    arm: str,
    metrics: dict[str, np.ndarray],
    steps: np.ndarray,
    seconds: float | None,
) -> dict[str, Any]:
    """Returns the means over seeds, with intervals, of one arm at the end, and what it cost.

    Args:
      objective: the objective's name.
      arm: the arm's name.
      metrics: `[S, 1 + R, ...]` each.
      steps: `[1 + R]`, gradient steps.
      seconds: that a gradient step of one run takes; None = not measured.
    """
    curves = curves_of(metrics)
    reached, censored = queries_to_level(curves["kl"], steps, LEVEL * curves["kl"][:, 0])
    row: dict[str, Any] = {"objective": objective, "arm": arm}
    row |= {name: mean_interval(values[:, -1]) for name, values in curves.items()}
    row["pretrained"] = {name: mean_interval(values[:, 0]) for name, values in curves.items()}
    row["steps_to_level"] = float(np.median(reached))
    row["never"] = float(np.mean(censored))
    if "optimum_kl" in curves:
        own = curves["optimum_kl"]
        row["steps_to_own_end"] = float(
            np.median(queries_to_level(own, steps, LEVEL * own[:, 0])[0])
        )
    row["networks"] = OBJECTIVES[objective].networks
    a_step = None if seconds is None else 1e3 * seconds
    row["milliseconds_a_step"] = a_step
    row["milliseconds_to_level"] = None if a_step is None else a_step * row["steps_to_level"]
    if "gold_curve" in metrics:
        last = {k: v[:, -1] for k, v in metrics.items() if k.endswith("_curve")}
        best = last["gold_curve"].max(axis=1)
        row["gold_lost_to_over_optimisation"] = mean_interval(best - last["gold_curve"][:, -1])
    return row


def summary_tables(config: Config, domain: Domain, summary: list[dict]) -> list[Table]:
    """Returns the tables of measures, of the segments where there are any, and of costs.

    Args:
      config: the config.
      domain: what is compared.
      summary: rows of `summary_row`.
    """
    tables = [
        _measures(
            MEASURES,
            summary,
            title=f"{config.population}: after {config.num_steps} gradient steps on "
            f"{config.num_comparisons} comparisons",
            caption=f"means over {config.num_seeds} seeds [95%]; end: the law that enough "
            "comparisons lead the objective to, in closed form with the judges' q; win rate: "
            "against the pretrained model; gold: E_pi log q",
        )
    ]
    if domain.segments:
        by_segment = {f"kl_{name}": name for name in domain.segments}
        tables.append(_measures(by_segment, summary, title="KL(q_g || pi) by segment g"))
    return [*tables, _cost(summary)]


def _measures(
    columns: dict[str, str], summary: list[dict], *, title: str, caption: str | None = None
) -> Table:
    table = Table(title=title, caption=caption)
    for heading in ("objective", "arm", *columns.values()):
        table.add_column(heading, justify="left" if heading in ("objective", "arm") else "right")
    rows = [summary[0]["pretrained"] | {"objective": "pretrained", "arm": ""}, *summary]
    for row in rows:
        cells = [format_interval(row.get(name), interval=name == "kl") for name in columns]
        table.add_row(row["objective"], row["arm"], *cells)
    return table


def _cost(summary: list[dict]) -> Table:
    table = Table(
        title=f"cost to {LEVEL:.0%} of the pretrained model's KL(q || p0)",
        caption="steps: median number of gradient steps to that level; never: share of seeds that "
        "do not reach it; own end: steps to half of the distance to the law that the objective "
        "itself leads to; ms: milliseconds of one run on this machine, after compilation",
    )
    for heading in ("objective", "arm", "networks", *COST_COLUMNS):
        table.add_column(heading, justify="left" if heading in ("objective", "arm") else "right")
    for row in summary:
        bound = ">" if row["never"] >= 0.5 else ""
        a_step, total = row["milliseconds_a_step"], row["milliseconds_to_level"]
        table.add_row(
            row["objective"],
            row["arm"],
            str(row["networks"]),
            f"{bound}{row['steps_to_level']:.0f}",
            f"{row['never']:.0%}",
            f"{row['steps_to_own_end']:.0f}" if "steps_to_own_end" in row else "",
            "" if a_step is None else f"{a_step:.3f}",
            "" if total is None else f"{bound}{total:.1f}",
        )
    return table
