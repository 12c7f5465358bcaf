"""Summarises a run: a row for each arm and reference, as JSON and as tables."""

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.inclusive import references
from experiments.inclusive.config import Config
from experiments.inclusive.plan import answers_after
from experiments.inclusive.populations import Population
from experiments.inclusive.references import Curves

SHOWN_ANSWERS = (10, 30, 100, 300, 1000)


MEASURES = ("choice_log_loss", "best_known", "entropy", "leak")


def summarise(
    config: Config,
    population: Population,
    results: dict[str, Curves],
    fits: dict[str, Curves],
    points: dict[str, Curves],
) -> list[dict]:
    """Returns a row for each arm and reference: KL by numbers of answers, and final measures.

    Args:
      config: the config.
      population: the recorded people.
      results: metrics `[S, 1 + R, ...]` of every arm.
      fits: as from `references.curves`.
      points: as from `references.points`.
    """
    shown = shown_answers(config)
    rows: list[dict] = []
    for arm, metrics in results.items():
        by_answers = dict(zip(answers_after(config), metrics["kl"][:, 1:].T, strict=True))
        rows.append(_model_row(arm, population, metrics, -1, {n: by_answers[n] for n in shown}))
    first = next(iter(results.values()))
    unlearned = dict.fromkeys(shown, first["kl"][:, 0])
    rows.append(_model_row("pretrained", population, first, 0, unlearned))
    for name, curves in fits.items():
        kl = dict(zip(shown, curves["kl"].T, strict=True))
        row = {"name": name, "kl": {n: mean_interval(values) for n, values in kl.items()}}
        row |= {k: mean_interval(curves[k][:, -1]) for k in ("choice_log_loss", "best_known")}
        rows.append(row)
    for name, values in points.items():
        row = {"name": name, "kl": {shown[-1]: mean_interval(values["kl"])}}
        row |= {k: mean_interval(v) for k, v in values.items() if k not in ("kl", "prediction")}
        row["kl_by_group"] = _by_group(population, values["prediction"])
        rows.append(row)
    return rows


def _model_row(
    name: str, population: Population, metrics: Curves, column: int, kl: dict[int, np.ndarray]
) -> dict:
    """Returns the row of a language model, with its measures of one column of the metrics."""
    return {
        "name": name,
        "kl": {n: mean_interval(values) for n, values in kl.items()},
        **{measure: mean_interval(metrics[measure][:, column]) for measure in MEASURES},
        "kl_by_group": _by_group(population, metrics["prediction"][:, column]),
    }


def _by_group(population: Population, law: np.ndarray) -> dict[str, dict[str, float]]:
    groups = references.kl_by_group(population, law)
    return {group: mean_interval(values) for group, values in groups.items()}


def shown_answers(config: Config) -> list[int]:
    """Returns the numbers of answers that the table shows; the last one is always among them."""
    asked = answers_after(config).tolist()
    return [n for n in asked if n in SHOWN_ANSWERS or n == asked[-1]]


def tables(config: Config, population: Population, summary: list[dict]) -> list[Table]:
    """Returns a table of the rows of `summarise`, and with groups another one of KL by group."""
    shown = shown_answers(config)
    table = Table(
        title=f"{config.dataset}: KL(judges' shares || prediction) by answers a question, nats",
        caption=f"means over {config.num_seeds} divisions of the people [95%]; the other columns "
        "are after the last answer, and so are the laws that need no answers",
    )
    table.add_column("")
    for n in shown:
        table.add_column(f"{n}", justify="right")
    for name in ("choice log-loss", "best known", "entropy", "leak"):
        table.add_column(name, justify="right")
    for row in summary:
        cells = [format_interval(row["kl"].get(n)) for n in shown]
        for name in MEASURES:
            cells.append(format_interval(row.get(name), interval=False))
        table.add_row(row["name"], *cells)
    if not population.groups:
        return [table]
    groups = list(dict.fromkeys(population.groups))
    by_group = Table(title="the same by group, after the last answer")
    for heading in ("", *groups):
        by_group.add_column(heading, justify="right" if heading else "left")
    for row in summary:
        if "kl_by_group" in row:
            by_group.add_row(
                row["name"], *(format_interval(row["kl_by_group"][group]) for group in groups)
            )
    return [table, by_group]
