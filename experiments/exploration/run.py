"""`python -m experiments.exploration.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks
from experiments.common.didactic import check_documents
from experiments.common.meshes import open_mesh
from experiments.exploration import plot
from experiments.exploration.arms import ARMS, CLAIM, PASSIVE_CANDIDATES
from experiments.exploration.config import Config, Setting, settings
from experiments.exploration.process import make_process
from experiments.exploration.summary import LEVELS, claim_holds, summarise
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 100_000
MOST_RESPONSES = PASSIVE_CANDIDATES
MOST_LAPLACE = 1024  # vocab_size ** max_length; the logits make a matrix to invert a round
SECONDS = {"tabular": (6.0, 2e-8), "transformer": (20.0, 1.5e-6)}  # compilation, a document's score


def check(config: Config) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, tuple(ARMS))
    uses_laplace = any("laplace" in s.arms for s in settings(config, tuple(ARMS)))
    if uses_laplace and ((config.num_responses or 2) > 2 or config.figure == "transformer"):
        raise binary.UsageError(
            "--arms: laplace needs pairs and a table as the learner, found "
            f"--num_responses={config.num_responses or 2} and --figure={config.figure}"
        )
    largest = max(
        (s.config.vocab_size**s.config.max_length for s in settings(config, tuple(ARMS))), default=0
    )
    if uses_laplace and largest > MOST_LAPLACE:
        raise binary.UsageError(
            f"--arms: laplace inverts a matrix of all logits, so that --vocab_size ** --max_length "
            f"must be at most {MOST_LAPLACE} in every setting, found {largest}"
        )
    if config.num_segments > 1 and (config.num_responses or 2) > 2:
        raise binary.UsageError(
            "--num_segments above 1 needs pairs, found --num_responses="
            f"{config.num_responses}: leave one of the two out"
        )
    if config.num_responses is not None and not 2 <= config.num_responses <= MOST_RESPONSES:
        raise binary.UsageError(
            f"--num_responses must be from 2 to {MOST_RESPONSES}, the candidates of the passive "
            f"arms, found {config.num_responses}"
        )
    binary.at_least(
        config,
        num_seeds=2,
        num_members=1,
        vocab_size=config.num_responses or 2,
        max_length=1,
        num_rounds=2,
        queries_per_round=1,
        num_candidates=config.num_responses or 2,
        num_steps=1,
        num_segments=1,
        chunk_rounds=1,
    )
    for setting in settings(config, tuple(ARMS)):
        _mesh(setting.config)
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)
    optional = () if config.temperature is None else ("temperature",)
    binary.positive(config, "spread", "prior_scale", "learning_rate", "level", *optional)


def _mesh(config: Config) -> jax.sharding.Mesh | None:
    return open_mesh(config.mesh, num_seeds=config.num_seeds, num_members=config.num_members)


def minutes(setting: Setting) -> float:
    """Returns the rough cost of an arm on 2 CPU cores, from measured runs."""
    config = setting.config
    documents = config.vocab_size**config.max_length
    learners = config.num_members + 1
    scores = config.num_seeds * learners * documents * config.num_rounds * (config.num_steps + 1)
    compilation, a_score = SECONDS[setting.learner]
    return (compilation + scores * a_score) / 60.0


def experiment(config: Config) -> None:
    """Runs every arm of every setting, then writes and prints the results."""
    check(config)
    console = open_console()
    plan = [(s, arm) for s in settings(config, tuple(ARMS)) for arm in _with_baselines(s)]
    cost = sum(minutes(setting) for setting, _ in plan)
    console.print(
        f"figure {config.figure}: {len(plan)} runs of {config.num_seeds} seeds on "
        f"{jax.default_backend()}, about {cost:.1f} minutes on 2 CPU cores"
    )
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.figure}", config, free=("run_dir", "mesh")
    ) as folder:
        began = time.perf_counter()
        results = _run(plan, folder, console)
        rows = [
            row
            for (setting, arm), metrics in results.items()
            for row in run_folder.metric_rows(setting.name, "ilhf", arm, _queries(setting), metrics)
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [summarise(setting, arm, results, _queries(setting)) for setting, arm in plan]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, results, summary, folder)
        for table in _tables(summary):
            console.print(table)
        for name, better in claim_holds(summary).items():
            console.print(f"{name}: clearly better than {CLAIM}: {', '.join(better) or 'no arm'}")
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _with_baselines(setting: Setting) -> tuple[str, ...]:
    """Returns the setting's arms, with the claim and the passive arm among them."""
    return tuple(dict.fromkeys((CLAIM, "passive", *setting.arms)))


def _queries(setting: Setting) -> np.ndarray:
    return np.arange(setting.config.num_rounds + 1) * setting.config.queries_per_round


def _run(
    plan: list[tuple[Setting, str]], folder: Path, console: Console
) -> dict[tuple[Setting, str], dict[str, np.ndarray]]:
    results = {}
    with progress_bar(console, sum(s.config.num_rounds for s, _ in plan)) as advance:
        for setting, arm in plan:
            advance(f"{setting.name} {arm}", 0)
            config = setting.config
            results[setting, arm] = chunks.run_seeds(
                make_process(setting, arm),
                jax.random.split(jax.random.key(config.seed), config.num_seeds),
                folder / "arms" / setting.name / arm,
                chunks.equal_chunks(
                    config.num_rounds, config.queries_per_round, config.chunk_rounds
                ),
                mesh=_mesh(config),
                progress=partial(advance, f"{setting.name} {arm}"),
            )
    return results


def _tables(summary: list[dict]) -> list[Table]:
    tables = []
    for name in dict.fromkeys(row["setting"] for row in summary):
        rows = [row for row in summary if row["setting"] == name]
        table = Table(
            title=f"{name}: {rows[0]['num_seeds']} seeds, {rows[0]['budget']} queries",
            caption="KL(q || mixture) at the end, KL(q || point estimate); the paired difference "
            f"to {CLAIM}; mean labels to a level (share of seeds that never reach it, counted with "
            "the budget); saving: how many times fewer labels than passive the mean curve needs "
            "to where passive's ends; all intervals of 95%, not corrected for the number of arms",
        )
        table.add_column("arm")
        for column in ("mean", "median", "point", f"less {CLAIM}", *LEVELS[:-1], "saving"):
            table.add_column(column, justify="right")
        for row in sorted(rows, key=lambda row: row["kl"]["mean"]):
            table.add_row(
                row["arm"],
                _text(row["kl"]),
                f"{row['kl_median']['mean']:.3f}",
                f"{row['point_kl']['mean']:.3f}",
                _text(row["less_claim"]) if row["arm"] != CLAIM else "",
                *(f"{row[level]['mean']:.0f} ({row[level]['never']:.0%})" for level in LEVELS[:-1]),
                _text(row["saving"], 1),
            )
        tables.append(table)
    return tables


def _text(value: dict, digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


if __name__ == "__main__":
    binary.main(Config, experiment)
