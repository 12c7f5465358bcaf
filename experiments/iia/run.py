"""`python -m experiments.iia.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks
from experiments.common.intervals import format_interval
from experiments.iia import exact, plot, summary, trained
from experiments.iia.config import Config
from experiments.iia.objectives import make_objectives
from experiments.iia.summary import Case, Curves, Gaps
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

CLOSEST = 1e-6  # the least distance of a share from 0 and from 1


def check(config: Config) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("objective", config.objectives, tuple(make_objectives(config)))
    binary.at_least(
        config,
        num_seeds=2,
        num_rounds=1,
        num_steps=1,
        num_queries=1,
        chunk_rounds=1,
        vocab_size=2,
    )
    binary.positive(config, "beta", "delta", "learning_rate")
    if not CLOSEST <= config.share <= 1 - CLOSEST:
        raise binary.UsageError(
            f"--share must be between 0 and 1, at least {CLOSEST:g} from both, found {config.share}"
        )
    if config.vocab_size % 2:
        raise binary.UsageError(f"--vocab_size must be even, found {config.vocab_size}")
    largest = 1 + trained.num_messages(config)
    if not config.sizes or not all(2 <= size <= largest for size in config.sizes):
        raise binary.UsageError(
            f"--sizes must be between 2 and {largest}, because there are vocab_size ** 2 / 2 = "
            f"{largest - 1} messages of type 2, found {config.sizes}"
        )
    if not all(0 <= correlation <= 1 for correlation in config.correlations):
        raise binary.UsageError(
            f"--correlations must be between 0 and 1, found {config.correlations}"
        )


def experiment(config: Config) -> None:
    """Fits and trains every objective, then writes and prints the results."""
    check(config)
    console = open_console()
    objectives = summary.chosen_objectives(config)
    runs = len(summary.choice_cases(config)) * config.num_seeds
    console.print(
        f"{len(objectives)} objectives, {runs} trained models each, on {jax.default_backend()}"
    )
    with run_folder.open_run_folder(config.run_dir, config) as folder:
        began = time.perf_counter()
        console.print("exact minima ...")
        gaps = summary.exact_gaps(config)
        curves = _train(config, folder, console)
        rows = summary.summarise(config, gaps, curves)
        run_folder.write_csv(folder / "metrics.csv", _csv_rows(config, rows, curves))
        run_folder.write_json(folder / "summary.json", rows)
        figure = plot.draw(config, gaps, curves, rows, folder)
        for table in _tables(config, gaps, rows):
            console.print(table)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _train(config: Config, folder: Path, console: Console) -> dict[tuple[Case, str], Curves]:
    objectives = summary.chosen_objectives(config)
    curves: dict[tuple[Case, str], Curves] = {}
    with progress_bar(console, len(objectives) * config.num_rounds) as advance:
        for name, objective in objectives.items():
            advance(name, 0)
            metrics = chunks.run_seeds(
                trained.make_process(config, name, objective),
                summary.inputs(config),
                folder / "objectives" / name,
                chunks.equal_chunks(config.num_rounds, config.num_queries, config.chunk_rounds),
                progress=partial(advance, name),
            )
            cases = summary.split_cases(config, metrics).items()
            curves |= {(case, name): of_case for case, of_case in cases}
    return curves


def _csv_rows(
    config: Config, rows: list[dict], curves: dict[tuple[Case, str], Curves]
) -> list[tuple]:
    """Returns the rows of metrics.csv; an exact minimum is filed as seed 0 after 0 steps."""
    csv_rows: list[tuple] = []
    for row in rows:
        case = Case(*(row[field] for field in Case._fields))
        ends = {"gap": row["gap"], "share": row["share_of_policy"]}
        values = {name: np.array([[value]]) for name, value in ends.items()}
        csv_rows += run_folder.metric_rows(
            case.name, row["objective"], "exact", np.zeros(1), values
        )
    steps = np.arange(config.num_rounds + 1) * config.num_steps
    for (case, name), metrics in curves.items():
        csv_rows += run_folder.metric_rows(case.name, name, "trained", steps, metrics)
    return csv_rows


def _tables(config: Config, gaps: Gaps, rows: list[dict]) -> list[Table]:
    choices = [row for row in rows if "trained" in row]
    dichotomy = [row for row in choices if row["correlation"] == 1.0]
    gap_table = _table(
        "implied reward gap r1 - r2 from choices, the dichotomy",
        config,
        caption=f"p = {config.share:g}; trained: means over {config.num_seeds} seeds [95%]",
    )
    for name in dict.fromkeys(row["objective"] for row in dichotomy):
        _add_gaps(gap_table, name, [row for row in dichotomy if row["objective"] == name])
    share_table = _table(
        "type 1's share of the policy, exact",
        config,
        caption="among as many messages of either type / among the K messages of a query",
    )
    for label, (beta, by_size) in summary.policies(gaps, config).items():
        cells = [
            f"{exact.type_share(gap, 1, beta):.3f} / {exact.type_share(gap, size - 1, beta):.3f}"
            for size, gap in by_size.items()
        ]
        share_table.add_row(label, *cells)
    clone_table = _table("correlated clones: the same gap by correlation", config)
    shown = summary.shown_objective(config)
    for correlation in dict.fromkeys(row["correlation"] for row in choices):
        own = [r for r in choices if (r["objective"], r["correlation"]) == (shown, correlation)]
        _add_gaps(clone_table, f"{shown}, correlation {correlation:g}", own)
    answer_table = _table(
        "other answers: gap, exact", config, caption="*: the type that fewer want has more reward"
    )
    answers = [r for r in rows if r["correlation"] == 1.0 and r["objective"] in ("ilhf", "dpo")]
    for key in dict.fromkeys(_answer_key(row) for row in answers):
        share, answer, name = key
        own = [row for row in answers if _answer_key(row) == key]
        answer_table.add_row(f"p = {share:g}: {answer}, {name}", *map(_gap_cell, own))
    return [gap_table, share_table, clone_table, answer_table]


def _table(title: str, config: Config, caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption)
    table.add_column("")
    for size in config.sizes:
        table.add_column(f"K = {size}", justify="right")
    return table


def _add_gaps(table: Table, label: str, rows: list[dict]) -> None:
    table.add_row(f"{label}: exact", *map(_gap_cell, rows))
    trained_cells = [format_interval(row["trained"]["gap"]) for row in rows]
    table.add_row("trained", *(cell.replace(" [", "\n[") for cell in trained_cells))


def _gap_cell(row: dict) -> str:
    return f"{row['gap']:.3f}{'*' if row['wrong'] else ''}"


def _answer_key(row: dict) -> tuple[float, str, str]:
    return row["share"], row["answer"], row["objective"]


if __name__ == "__main__":
    binary.main(Config, experiment)
