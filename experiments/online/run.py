"""`python -m experiments.online.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks, kept, threads
from experiments.common.intervals import format_interval
from experiments.common.meshes import open_mesh
from experiments.online import plot
from experiments.online.arms import ARMS, MATCHED
from experiments.online.config import ChooseBy, Config, People, Settled, Utility, settled
from experiments.online.measures import MEASURES
from experiments.online.process import make_fixed, make_process
from experiments.online.summary import Results, summarise
from experiments.online.world import World, load_world
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar
from shatter.types import Params

BASELINE = "passive"
OPEN_ONLY = ("max_length", "batch_size", "num_samples")
COLLAPSED = 0.1
"""Entropy of a response, nats, below which who speaks says one thing."""


def check(config: Config) -> Settled:
    """Raises an error if a flag has a value that cannot be used.

    Returns:
      The config, in which every flag has a value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("setting", (config.setting,), tuple(MEASURES))
    binary.choose("arm", config.arms, tuple(ARMS))
    config = settled(config)
    binary.choose("people", (config.people,), get_args(People))
    binary.choose("utility", (config.utility,), get_args(Utility))
    binary.choose("choose_by", (config.choose_by,), get_args(ChooseBy))
    binary.at_least(
        config,
        num_seeds=2,
        max_length=1 if config.setting == "closed" else 2,
        num_members=1,
        rank=1,
        num_rounds=1,
        queries_per_round=1,
        num_candidates=2,
        num_steps=1,
        batch_size=1,
        hidden=1,
        num_particles=2,
        policy_steps=1,
        policy_batch=1,
        period=1,
        num_base_samples=16,
        pool_size=2,
        num_samples=2,
        chunk_rounds=1,
    )
    open_mesh(config.mesh, num_seeds=config.num_seeds, num_members=config.num_members)
    rates = ("learning_rate", "reward_scale", "reward_rate", "policy_rate")
    binary.positive(config, "prior_spread", "taste", "dpo_beta", "readout_beta", *rates)
    filters = {"candidate_top_k": binary.whole(2, other=(None,))}  # of one token nothing differs
    shares = {"nudge": binary.real(0), "beta": binary.real(0), "anchor_decay": binary.real(0, 1)}
    binary.check_ranges(config, shares | filters)
    if config.match_lengths:
        _check_matched(config)
    is_retraining = any(ARMS[arm].retrained for arm in config.arms)
    if is_retraining and config.num_rounds % config.period:
        raise binary.UsageError(
            "--num_rounds must be whole periods, so that offline and periodic learn from the last "
            f"answers, found --num_rounds={config.num_rounds} and --period={config.period}"
        )
    if "periodic" in config.arms and config.num_rounds == config.period:
        raise binary.UsageError(
            "--arms: periodic needs two periods or more, because before the first has ended its "
            "policy is the base and it learns as offline does, found "
            f"--num_rounds={config.num_rounds} and --period={config.period}"
        )
    if not 0 < config.minority < 1:
        raise binary.UsageError(f"--minority must be between 0 and 1, found {config.minority}")
    for name in ("num_candidates", "num_samples"):
        if getattr(config, name) % config.num_members:
            raise binary.UsageError(
                f"--{name} must be a multiple of --num_members, because all members draw equally "
                f"many, found {getattr(config, name)} and {config.num_members}"
            )
    return config


def _check_matched(config: Settled) -> None:
    """Raises an error if the setting or an arm cannot ask about responses of one length."""
    if config.setting != "open":
        raise binary.UsageError(
            f"--match_lengths: expected --setting=open, found --setting={config.setting}: leave "
            "--match_lengths out"
        )
    can = [name for name, arm in ARMS.items() if arm.kind == "ilhf" and arm.explore in MATCHED]
    others = [arm for arm in config.arms if arm not in can]
    if others:
        raise binary.UsageError(
            f"--match_lengths: expected --arms among {', '.join(can)}, found {', '.join(others)}: "
            "name other --arms, or leave --match_lengths out"
        )


def experiment(flags: Config) -> None:
    """Runs every arm of the setting, then writes and prints the results."""
    config = check(flags)
    threads.allow()
    console = open_console()
    began = time.perf_counter()
    world, params = load_world(config)
    free = ("run_dir", "mesh", "data_dir", "arms", *(OPEN_ONLY if world.is_closed else ()))
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.setting}", config, free=free
    ) as folder:
        queries = np.arange(config.num_rounds + 1) * config.queries_per_round
        arms = tuple(dict.fromkeys((BASELINE, *config.arms)))
        console.print(
            f"{config.setting}, {config.model_name_or_path}: arms {', '.join(arms)}; "
            f"{config.num_seeds} seeds, {queries[-1]} comparisons each, on {jax.default_backend()}"
        )
        results, seconds = _run(config, world, params, arms, folder, console)
        rows = [
            row
            for arm, metrics in results.items()
            for row in run_folder.metric_rows(config.setting, ARMS[arm].kind, arm, queries, metrics)
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [
            {**summarise(config, arm, results, queries), "seconds": seconds[arm]} for arm in results
        ]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config.setting, results, queries, folder)
        console.print(_table(config.setting, summary))
        for row in summary:
            _warn(console, row)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _run(
    config: Settled,
    world: World,
    params: Params,
    arms: tuple[str, ...],
    folder: Path,
    console: Console,
) -> tuple[Results, dict[str, float | None]]:
    """Returns the metrics of every arm, and the seconds that it took, all seeds."""
    fixed = make_fixed(world, params)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    plan = chunks.equal_chunks(config.num_rounds, config.queries_per_round, config.chunk_rounds)
    results: Results = {}
    seconds = {}
    with progress_bar(console, len(arms) * config.num_rounds) as advance:
        for arm in arms:
            advance(arm, 0)
            own = folder / "arms" / arm
            run = partial(
                chunks.run_seeds,
                make_process(world, arm),
                keys,
                own,
                plan,
                shared=(fixed,),
                seeds_at_once=1,
                mesh=open_mesh(
                    config.mesh, num_seeds=config.num_seeds, num_members=config.num_members
                ),
                progress=partial(advance, arm),
            )
            results[arm], seconds[arm] = kept.run_timed(own, run)
    return results, seconds


def _warn(console: Console, row: dict) -> None:
    if row["entropy"]["mean"] < COLLAPSED:
        console.print(
            f"warning: {row['arm']} says one thing to every prompt: the entropy of a response is "
            f"{row['entropy']['mean']:.3f} nats on average; a higher --beta or --anchor_decay "
            "helps a policy, a higher --dpo_beta DPO, a lower --learning_rate members",
            style="yellow",
        )


def _table(setting: str, rows: list[dict]) -> Table:
    table = Table(
        title=f"{setting}: {rows[0]['num_seeds']} seeds, {rows[0]['budget']} comparisons",
        caption="means over seeds [95%] after the last round; start: the prior's draws; half: "
        "median comparisons to half of the base's KL(q || p0) (share of seeds never there)",
    )
    names = MEASURES[setting]
    for heading in ("arm", *names, "half", "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    start = [format_interval(rows[0]["start"][name], interval=False) for name in names]
    table.add_row("start", *start, "", "")
    for row in rows:
        cells = [format_interval(row[name]) for name in names]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        table.add_row(row["arm"], *cells, row["half"]["text"], seconds)
    return table


if __name__ == "__main__":
    binary.main(Config, experiment)
