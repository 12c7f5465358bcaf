"""`python -m experiments.pipeline.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks, kept
from experiments.common.didactic import check_documents
from experiments.common.intervals import format_interval
from experiments.pipeline import plot
from experiments.pipeline import world as of_world
from experiments.pipeline.algorithms import ALGORITHMS
from experiments.pipeline.config import Config, Setting, settings
from experiments.pipeline.process import make_process
from experiments.pipeline.summary import COLLAPSED, Results, summarise
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 5_000


def check(config: Config) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("algorithm", config.algorithms, tuple(ALGORITHMS))
    binary.at_least(
        config,
        num_seeds=2,
        vocab_size=2,
        max_length=1,
        num_rounds=2,
        queries_per_round=1,
        period=1,
        num_candidates=2,
        num_particles=2,
        num_members=1,
        num_steps=1,
        policy_steps=1,
        policy_batch=1,
        chunk_rounds=1,
        hidden=1,
    )
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)
    binary.positive(
        config,
        "spread",
        "reward_scale",
        "prior_scale",
        "learning_rate",
        "reward_rate",
        "policy_rate",
        "beta",
        "readout_beta",
        "dpo_beta",
    )
    binary.check_ranges(config, {"nudge": binary.real(0), "anchor_decay": binary.real(0, 1)})
    if config.num_rounds % config.period or config.num_rounds == config.period:
        raise binary.UsageError(
            "--num_rounds must be two periods or more, and whole ones, so that there is a curve "
            "and the last answers are learned from; found "
            f"--num_rounds={config.num_rounds} and --period={config.period}"
        )


def experiment(config: Config) -> None:
    """Runs every algorithm of every setting, then writes and prints the results."""
    check(config)
    console = open_console()
    plan = [(s, name) for s in settings(config, tuple(ALGORITHMS)) for name in s.algorithms]
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.figure}", config, free=("run_dir",)
    ) as folder:
        began = time.perf_counter()
        for setting in dict.fromkeys(setting for setting, _ in plan):
            of_world.check_rater(_laws(setting))
        results, seconds = _run(plan, folder, console)
        labels = _labels(config)
        rows = [
            row
            for (setting, name), metrics in results.items()
            for row in run_folder.metric_rows(
                setting.name, ALGORITHMS[name].kind, name, labels, metrics
            )
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [{**summarise(*key, results, labels), "seconds": seconds[key]} for key in plan]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, results, labels, folder)
        console.print(_table(summary))
        for row in summary:
            _warn(console, row)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _keys(config: Config) -> jax.Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def _labels(config: Config) -> np.ndarray:
    return np.arange(config.num_rounds + 1) * config.queries_per_round


def _laws(setting: Setting) -> np.ndarray:
    """Returns the law `[S, D]` of the rater of every seed, of a table whoever learns."""
    plain = Setting(setting.name, setting.config, ())
    draw = partial(of_world.draw_problem, setting=plain, world=of_world.world_of(plain))
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key).log_q))(_keys(setting.config)))


def _run(
    plan: list[tuple[Setting, str]], folder: Path, console: Console
) -> tuple[Results, dict[tuple[Setting, str], float | None]]:
    """Returns the metrics of every algorithm, and the seconds that it took, all seeds."""
    results, seconds = {}, {}
    with progress_bar(console, sum(s.config.num_rounds for s, _ in plan)) as advance:
        for setting, name in plan:
            title, config = f"{setting.name} {name}", setting.config
            advance(title, 0)
            own = folder / "runs" / setting.name / name
            run = partial(
                chunks.run_seeds,
                make_process(setting, name),
                _keys(config),
                own,
                chunks.equal_chunks(
                    config.num_rounds, config.queries_per_round, config.chunk_rounds
                ),
                progress=partial(advance, title),
            )
            results[setting, name], seconds[setting, name] = kept.run_timed(own, run)
    return results, seconds


def _warn(console: Console, row: dict) -> None:
    if row["collapsed"]:
        console.print(
            f"warning: {row['setting']} {row['algorithm']}: the policy says one thing in "
            f"{row['collapsed']:.0%} of the seeds (entropy below {COLLAPSED} nats; mean entropy "
            f"{row['end']['entropy']['mean']:.3f}): a higher --beta or --anchor_decay helps",
            style="yellow",
        )


def _table(summary: list[dict]) -> Table:
    table = Table(
        title=f"{summary[0]['num_seeds']} seeds, {summary[0]['budget']} labels",
        caption="at the end, mean [95%]; labels: seed by seed to where the reference's greedy "
        "decoding ends (share of seeds that never arrive, counted with the budget)",
    )
    columns = ("setting", "algorithm", "greedy", "samples", "KL", "entropy", "read-out KL")
    for column in (*columns, "labels", "seconds"):
        table.add_column(column)
    for row in summary:
        end, labels = row["end"], row.get("labels_win_greedy")
        table.add_row(
            row["setting"],
            row["algorithm"],
            *(
                format_interval(end[measure])
                for measure in ("win_greedy", "win_rate", "kl", "entropy", "readout_kl")
            ),
            f"{labels['mean']['mean']:.0f} ({labels['never']:.0%})" if labels else "",
            "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        )
    return table


if __name__ == "__main__":
    binary.main(Config, experiment)
