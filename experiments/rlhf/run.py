"""`python -m experiments.rlhf.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import chunks
from experiments.common.didactic import check_documents
from experiments.common.intervals import format_interval, mean_interval
from experiments.inclusive import texts
from experiments.rlhf import plot
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, make_domain
from experiments.rlhf.objectives import OBJECTIVES, PPO_EPOCHS
from experiments.rlhf.process import make_process
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar
from shatter.evaluation import queries_to_level

MOST_DOCUMENTS = 5_000
CHUNKS = 5
COST_COLUMNS = ("steps", "never", "own end", "ms a step", "ms to level")
LEVEL = 0.5  # of the pretrained model's KL(q || p0)
Results = dict[tuple[str, str], dict[str, np.ndarray]]
"""Metrics `[S, 1 + R, ...]` by objective and arm."""


def check(config: Config) -> None:
    """Refuses values that cannot be.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("objective", config.objectives, tuple(OBJECTIVES))
    binary.at_least(
        config,
        num_seeds=2,
        num_comparisons=1,
        batch_size=2,
        record_every=PPO_EPOCHS,
        vocab_size=2,
        max_length=1,
        width=texts.NUM_HEADS,
        pretraining_steps=1,
    )
    binary.positive(config, "learning_rate", "slic_delta", "kl_target", "spread", "betas")
    for name in ("ilhf_lambda", "slic_regulariser"):
        if not getattr(config, name) >= 0:
            raise binary.UsageError(f"--{name} must be at least 0, found {getattr(config, name)}")
    if not 0 < config.minority < 1:
        raise binary.UsageError(f"--minority must be between 0 and 1, found {config.minority}")
    if config.seeds_at_once is not None:
        binary.at_least(config, seeds_at_once=1)
    if config.width % texts.NUM_HEADS:
        raise binary.UsageError(
            f"--width must be a multiple of {texts.NUM_HEADS}, found {config.width}"
        )
    if config.record_every % PPO_EPOCHS or config.num_steps % (2 * config.record_every):
        raise binary.UsageError(
            f"--record_every must be a multiple of {PPO_EPOCHS}, and --num_steps of twice "
            f"--record_every, found {config.record_every} and {config.num_steps}"
        )
    if config.population == "didactic":
        check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def experiment(config: Config) -> None:
    """Trains every objective, then writes and prints the results."""
    check(config)
    console = open_console()
    names = config.objectives or tuple(OBJECTIVES)
    console.print(
        f"{config.population}, {config.model}: {len(names)} objectives, {config.num_seeds} seeds, "
        f"{config.num_comparisons} comparisons, {config.num_steps} gradient steps each"
    )
    began = time.perf_counter()
    domain = make_domain(config)
    if domain.note:
        console.print(f"note: {domain.note}")
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.population}_{config.model}", config
    ) as folder:
        results, seconds = _train(config, domain, names, folder, console)
        steps = np.arange(1 + config.num_steps // config.record_every) * config.record_every
        rows = [
            row
            for (objective, arm), metrics in results.items()
            for row in run_folder.metric_rows(
                config.population, objective, arm, steps, _curves(metrics)
            )
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        summary = [
            _row(config, objective, arm, metrics, steps, seconds[objective])
            for (objective, arm), metrics in results.items()
        ]
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(config, results, steps, folder)
        for table in _tables(config, domain, summary):
            console.print(table)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _train(
    config: Config, domain: Domain, names: tuple[str, ...], folder: Path, console: Console
) -> tuple[Results, dict[str, float | None]]:
    """Results, and seconds a gradient step of one run, after compilation."""
    num_rounds = config.num_steps // config.record_every
    plan = chunks.equal_chunks(num_rounds, 1, -(-num_rounds // CHUNKS))
    keys = jax.random.split(jax.random.key(config.seed + 1), config.num_seeds)
    at_once = config.seeds_at_once
    if at_once is None and config.model == "transformer" and jax.default_backend() == "cpu":
        at_once = 1
    results: Results = {}
    seconds: dict[str, float | None] = {}
    with progress_bar(console, len(names) * num_rounds) as advance:
        for name in names:
            advance(name, 0)
            objective = OBJECTIVES[name]
            betas = config.betas if objective.knows_beta else config.betas[:1]
            inputs = _repeated((domain.inputs, keys), betas)
            ends: list[tuple[float, int]] = []
            path = folder / "arms" / name
            metrics = chunks.run_seeds(
                make_process(config, domain, objective),
                inputs,
                path,
                plan,
                seeds_at_once=at_once,
                progress=partial(_advance, advance, name, ends),
            )
            seconds[name] = _seconds(path / "seconds.json", ends, config, len(inputs[2]))
            for place, beta in enumerate(betas):
                rows = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
                arm = f"beta={beta:g}" if objective.knows_beta else "no beta"
                results[name, arm] = {k: v[rows] for k, v in metrics.items()}
    return results, seconds


def _repeated(of_seeds: tuple[Any, jax.Array], betas: tuple[float, ...]) -> tuple:
    """The inputs of every seed at the first beta, then at the next one."""
    repeat = lambda leaf: jnp.concatenate([leaf] * len(betas))
    num_seeds = len(of_seeds[1])
    return (*jax.tree.map(repeat, of_seeds), jnp.repeat(jnp.asarray(betas), num_seeds))


def _advance(advance: Any, name: str, ends: list[tuple[float, int]], rounds: int) -> None:
    ends.append((time.perf_counter(), rounds))
    advance(name, rounds)


def _seconds(
    file: Path, ends: list[tuple[float, int]], config: Config, num_runs: int
) -> float | None:
    """Seconds a gradient step of one run, from the chunks after the first, which compiles."""
    if file.exists():
        return run_folder.read_json(file, float)
    if len(ends) < 2:
        return None
    rounds = sum(done for _, done in ends[1:])
    value = (ends[-1][0] - ends[0][0]) / (rounds * config.record_every * num_runs)
    run_folder.write_json(file, value)
    return value


def _curves(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those with one number a measurement."""
    return {name: values for name, values in metrics.items() if values.ndim == 2}


def _row(
    config: Config,
    objective: str,
    arm: str,
    metrics: dict[str, np.ndarray],
    steps: np.ndarray,
    seconds: float | None,
) -> dict[str, Any]:
    curves = _curves(metrics)
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


def _tables(config: Config, domain: Domain, summary: list[dict]) -> list[Table]:
    columns = {
        "kl": "KL(q || pi)",
        "optimum_kl": "KL(end || pi)",
        "total_variation": "TV",
        "entropy": "entropy",
        "log_score": "log score",
        "win_rate": "win rate",
        "kl_from_pretrained": "KL(pi || p0)",
        "gold_reward": "gold",
    }
    tables = [
        _measures(
            columns,
            summary,
            title=f"{config.population}: after {config.num_steps} gradient steps on "
            f"{config.num_comparisons} comparisons",
            caption=f"means over {config.num_seeds} seeds [95%]; end: the closed form that the "
            "objective aims at, with the judged q; win rate: against the pretrained model; gold: "
            "E_pi log q",
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
        caption="median gradient steps until first there, share of seeds that never are; own end: "
        "steps to half of the distance to the law that the objective itself leads to; ms: of one "
        "run on this machine, after compilation, a step and to the level",
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


if __name__ == "__main__":
    binary.main(Config, experiment)
