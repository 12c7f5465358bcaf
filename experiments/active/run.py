"""The binary `python -m experiments.active.run`, which README.md beside this file explains."""

import time
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from rich.console import Console

from experiments.active import plot, process
from experiments.active.arms import ARMS
from experiments.active.config import Config, Setting, settings
from experiments.active.inputs import make_inputs
from experiments.active.summary import Results, summarise
from experiments.active.tables import tables
from experiments.common import chunks, threads
from experiments.common.meshes import open_mesh
from experiments.common.sources import model_folder
from experiments.judgements.datasets import DATASETS
from shatter import models
from shatter.cli.common import binary, run_folder
from shatter.cli.common.frozen import Frozen, load_frozen
from shatter.cli.common.learners import Utility
from shatter.cli.common.progress import open_console, progress_bar

FREE = ("run_dir", "mesh", "data_dir", "ensembles", "arms")
SECONDS = {
    "laplace": 2.0,
    "heads": 5.0,
    "epinet": 9.0,
    "adapters": 45.0,
}  # of one seed of an arm, at full size


def check(config: Config) -> list[Setting]:
    """Raises an error if a flag has a value that cannot be used.

    Args:
      config: the config.

    Returns:
      The settings of each kind of ensemble.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset,), DATASETS)
    binary.choose("arm", config.arms, tuple(ARMS))
    binary.choose("utility", (config.utility,), get_args(Utility))
    binary.positive(config, "boltzmann_temperature", "utility_scale")
    binary.at_least(config, seed=0, num_outcomes=1, max_length=8, adapter_length=8, lora_r=1)
    binary.at_least(config, num_depths=1, num_components=0)
    plan = settings(config)
    for setting in plan:
        binary.at_least(
            setting,
            num_seeds=2,
            num_members=1,
            num_steps=1,
            batch_size=0,
            held_out_pairs=0,
            num_candidates=max(setting.batches),
            num_design=max(setting.batches),
        )
        binary.positive(setting, "prior_scale")
        if setting.kind != "laplace":
            binary.positive(setting, "learning_rate")
        _mesh(setting)
    return plan


def experiment(config: Config) -> None:
    """Runs every arm with every ensemble, then writes and prints the results."""
    plan = check(config)
    threads.allow()
    console = open_console()
    arms = tuple(dict.fromkeys(("random", *(config.arms or ARMS))))
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
                advance(f"{setting.kind}: the frozen model's features", 0)
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
                        mesh=_mesh(setting),
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
        for table in tables(config, [row for row in summary if row["ensemble"] == kind]):
            console.print(table)


def _mesh(setting: Setting) -> jax.sharding.Mesh | None:
    text = setting.config.mesh
    return open_mesh(text, num_seeds=setting.num_seeds, num_members=setting.num_members)


def _transformer(setting: Setting, model: Frozen) -> models.TransformerConfig | None:
    return model.config if setting.kind == "adapters" else None


if __name__ == "__main__":
    binary.main(Config, experiment)
