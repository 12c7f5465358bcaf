"""`python -m experiments.active.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.active import plot, process
from experiments.active.config import Config, Setting, settings
from experiments.active.splits import Division, load_divisions
from experiments.active.summary import LEVELS, Results, summarise
from experiments.common import chunks
from experiments.common.intervals import Interval
from experiments.common.sources import model_folder
from experiments.judgements.datasets import DATASETS
from shatter import models
from shatter.cli.common import binary, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import (
    Frozen,
    feature_table,
    hidden_table,
    load_frozen,
    standardised,
)
from shatter.cli.common.learners import adapter_prior_scale, layers_of
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.common.votes import Item
from shatter.types import Params

SCALE_PAIRS = 64  # of the pool, by which the prior scale of adapters is set
FREE = ("run_dir", "data_dir", "ensembles", "arms")
SECONDS = {"heads": 5.0, "epinet": 9.0, "adapters": 45.0}  # a seed of an arm, at full size


def check(config: Config) -> list[Setting]:
    """Refuses values that cannot be.

    Returns:
      What each kind of ensemble runs with.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset,), DATASETS)
    binary.choose("arm", config.arms, tuple(process.ARMS))
    binary.positive(config, "boltzmann_temperature", "utility_scale")
    binary.at_least(config, seed=0, num_outcomes=1, max_length=8, adapter_length=8, lora_r=1)
    found = settings(config)
    for setting in found:
        binary.at_least(
            setting,
            num_seeds=2,
            num_members=1,
            num_steps=1,
            batch_size=0,
            held_out_pairs=0,
            num_candidates=max(setting.batches),
        )
        binary.positive(setting, "prior_scale", "learning_rate")
    return found


def experiment(config: Config) -> None:
    """Runs every arm with every ensemble, then writes and prints the results."""
    plan = check(config)
    console = open_console()
    arms = tuple(dict.fromkeys(("random", *(config.arms or process.ARMS))))
    cost = sum(SECONDS[s.kind] * s.num_seeds * len(arms) for s in plan) / 60
    console.print(
        f"{config.dataset}: {len(arms)} arms with {', '.join(config.ensembles)} on "
        f"{jax.default_backend()}, about {cost:.0f} minutes on one CPU core"
    )
    model = load_frozen(model_folder(config.model_name_or_path, config.data_dir))
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.dataset}", config, free=FREE
    ) as folder:
        began = time.perf_counter()
        results: Results = {}
        num_rounds = sum(len(s.queries()) - 1 for s in plan) * len(arms)
        with progress_bar(console, num_rounds) as advance:
            for setting in plan:
                advance(f"{setting.kind}: what the frozen model says", 0)
                inputs = make_inputs(setting, model, folder)
                for arm in arms:
                    name = f"{setting.kind} {arm}"
                    advance(name, 0)
                    results[setting, arm] = chunks.run_seeds(
                        process.make_process(setting, arm, _transformer(setting, model)),
                        inputs,
                        folder / "arms" / setting.kind / arm,
                        setting.plan(),
                        seeds_at_once=min(setting.seeds_at_once, setting.num_seeds),
                        progress=partial(advance, name),
                    )
        report(config, results, folder, console)
        console.print(f"{time.perf_counter() - began:.0f} s. Results in {folder}")


def report(config: Config, results: Results, folder: Path, console: Console) -> None:
    """Writes metrics.csv, summary.json and the figures, and prints the tables."""
    rows = [
        row
        for (setting, arm), metrics in results.items()
        for row in run_folder.metric_rows(
            setting.kind,
            "ilhf",
            arm,
            np.array(setting.queries()),
            {name: values for name, values in metrics.items() if values.ndim == 2},
        )
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    summary = [summarise(setting, arm, results) for setting, arm in results]
    run_folder.write_json(folder / "summary.json", summary)
    plot.draw(config, results, folder)
    plot.draw_calibration(config, results, folder)
    for kind in config.ensembles:
        for table in _tables(config, [row for row in summary if row["ensemble"] == kind]):
            console.print(table)


def make_inputs(setting: Setting, model: Frozen, folder: Path) -> process.Problem:
    """The inputs of all seeds.

    Args:
      setting: what learns.
      model: the frozen model.
      folder: of the run, which keeps the features.

    Returns:
      Problems with a leading axis S on every leaf; features have mean 0 and variance 1 over the
      texts of the seed's pool.

    Raises:
      UsageError: if the data cannot be used, or the pool is smaller than the budget.
    """
    config = setting.config
    seeds = range(config.seed, config.seed + setting.num_seeds)
    items, division = load_divisions(
        config.dataset, seeds, data_dir=config.data_dir, held_out_pairs=setting.held_out_pairs
    )
    smallest = int((division.pool.votes.sum(axis=-1) > 0).sum(axis=-1).min())
    if setting.budget > smallest:
        raise UsageError(
            f"--until ends at {setting.budget} queries, and a pool of {config.dataset} has "
            f"{smallest}: ask for fewer"
        )
    features = feature_table(
        model, items, max_length=config.max_length, file=folder / "features.npz"
    )
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(np.array(seeds))
    division = _as_given(division)
    log_prob = features["log_prob"][division.texts]
    base: Params = ()
    scale: Params = np.full(len(seeds), setting.prior_scale, np.float32)
    if setting.kind == "adapters":
        table, base, scale = _adapter_inputs(setting, model, items, division, folder)
    else:
        table = {"features": _standardised(features["features"], division)}
    return process.Problem(keys, table, log_prob, division, base, scale)


def _as_given(division: Division) -> Division:
    """Whole numbers as int32, once and for all."""
    cast = lambda a: a.astype(np.int32) if a.dtype == np.int64 else a
    return jax.tree.map(cast, division)


def _standardised(features: np.ndarray, division: Division) -> np.ndarray:
    found = [
        standardised(features[texts], features[texts][in_pool])
        for texts, in_pool in zip(division.texts, division.in_pool, strict=True)
    ]
    return np.stack(found).astype(np.float32)


def _adapter_inputs(
    setting: Setting, model: Frozen, items: list[Item], division: Division, folder: Path
) -> tuple[dict[str, np.ndarray], Params, np.ndarray]:
    """Tables of hidden states, the base above them, and the prior's scale, `[S]` on all."""
    num_seeds = setting.num_seeds
    hidden = hidden_table(
        model,
        items,
        max_length=setting.config.adapter_length,
        layer=setting.learner.cut(model.config.num_layers),
        file=folder / "hidden.npz",
    )
    base = layers_of(setting.learner, model.config).upper_params(model.params)
    pairs = division.texts[0][division.pool.items[0, :SCALE_PAIRS]]
    numbers, pairs = np.unique(pairs, return_inverse=True)
    some = {name: values[numbers] for name, values in hidden.items()}
    find = jax.jit(
        lambda key, base, some, pairs: adapter_prior_scale(
            key, setting.learner, model.config, base, some, pairs
        ),
        compiler_options=compiler_options(),
    )
    scale = find(jax.random.key(setting.config.seed), base, some, pairs.reshape(-1, 2))
    table = {name: values[division.texts] for name, values in hidden.items()}
    copies = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_seeds, *leaf.shape)), base)
    return table, copies, np.full(num_seeds, scale, np.float32)


def _transformer(setting: Setting, model: Frozen) -> models.TransformerConfig | None:
    return model.config if setting.kind == "adapters" else None


def _tables(config: Config, rows: list[dict]) -> list[Table]:
    first = rows[0]
    labels = Table(
        title=f"{config.dataset}, {first['ensemble']}: {first['num_seeds']} seeds, "
        f"{first['budget']} labels; new items",
        caption="labels to what random reaches on average with n (share of seeds that never do); "
        "how many times fewer than random, of means over seeds [95%, paired]; nats a vote",
    )
    for title in ("arm", "log-loss at the end", "less random", "on average over the run"):
        labels.add_column(title)
    for name in LEVELS:
        level = first["levels"][name]
        labels.add_column(f"to {level['level']:.4f} (n = {level['random_labels']})")
        labels.add_column("times fewer")
    quality = Table(title=f"{config.dataset}, {first['ensemble']}: before and after, mean [95%]")
    measures = ("new_log_loss", "new_accuracy", "known_log_loss", "known_accuracy")
    shown = (*measures, "new_calibration_error", "joint_log_loss", "disagreement")
    for title in ("arm", *shown, "answers that decided"):
        quality.add_column(title)
    for row in rows:
        cells = [
            _four(row["after"]["new_log_loss"]),
            _four(row["end_difference"]),
            _four(row["mean_difference"]),
        ]
        for name in LEVELS:
            cells += [row["levels"][name]["text"], row["levels"][name]["ratio_text"]]
        labels.add_row(row["arm"], *cells)
        after = [_four(row["after"][name]) for name in shown]
        quality.add_row(row["arm"], *after, f"{row['after']['decided']['mean']:.0f}")
    before = [f"{first['before'][name]['mean']:.4f}" for name in shown]
    quality.add_row("(before)", *before, "0")
    return [labels, quality]


def _four(value: Interval) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


if __name__ == "__main__":
    binary.main(Config, experiment)
