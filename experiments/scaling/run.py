"""`python -m experiments.scaling.run`: see README.md beside this file."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from rich.console import Console

from experiments.common import threads
from experiments.scaling import plot
from experiments.scaling.config import ARMS, NEED_REWARD, SIZES, UNTRAINED, Config, GoldName
from experiments.scaling.corpus import Corpus, load_corpus, prompts_of
from experiments.scaling.family import load_family_member, num_steps
from experiments.scaling.gold import make_gold
from experiments.scaling.language import Language, family_language, pretrained_language
from experiments.scaling.model import Model, make_model
from experiments.scaling.process import run_arm
from experiments.scaling.summary import (
    Results,
    beside_table,
    difference_table,
    model_table,
    share_table,
    summarise,
)
from experiments.scaling.task import Task, load_task, make_judge
from shatter.cli.common import binary, run_folder
from shatter.cli.common.frozen import count_parameters, weights_hash
from shatter.cli.common.progress import open_console, progress_bar
from shatter.types import Params

FREE = ("run_dir", "family_dir", "data_dir", "sizes", "models", "arms")
"""Flags that may differ when a run is resumed: models and arms are paired by seed."""


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("size", (*config.sizes, config.reference), tuple(SIZES))
    binary.choose("arm", config.arms, ARMS)
    binary.choose("gold reward", (config.gold,), get_args(GoldName))
    binary.at_least(
        config,
        num_seeds=2,
        context=8,
        pretraining_tokens=1,
        pretraining_batch=1,
        prompt_length=1,
        response_length=2,
        num_prompts=2,
        num_drawn=2,
        num_evaluated=1,
        max_shots=0,
        num_rounds=2,
        num_samples=2,
        best_of=2,
    )
    binary.at_least(config, batch_size=config.num_samples, num_updates=config.num_rounds)
    rates = [field.name for field in dataclasses.fields(config) if field.name.endswith("_rate")]
    binary.positive(config, "taste", "dpo_beta", *rates)
    binary.check_ranges(config, {"beta": binary.real(0)})
    if not config.arms or not (config.sizes or config.models):
        raise binary.UsageError("expected at least one of --arms, and one of --sizes or --models")
    if config.num_rounds % 2 or config.num_updates % config.num_rounds:
        raise binary.UsageError(
            f"--num_rounds must be even and divide --num_updates={config.num_updates}, found "
            f"{config.num_rounds}"
        )
    if config.batch_size % config.num_samples or config.batch_size % 2:
        raise binary.UsageError(
            f"--batch_size must be even and a multiple of --num_samples={config.num_samples}, "
            f"found {config.batch_size}"
        )


def experiment(config: Config) -> None:
    """Pretrains the family, runs every arm on every model, writes and prints the results."""
    check(config)
    threads.allow()
    console = open_console()
    began = time.perf_counter()
    corpus = load_corpus(config.data_dir or None)
    prompts_of(config, corpus.text, config.num_prompts)
    prompts_of(config, corpus.held_out, config.num_evaluated)
    others = [pretrained_language(config, name) for name in config.models]
    names = [*SIZES, *(language.name for language, _ in others)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise binary.UsageError(
            f"--models: expected names that differ from each other and from {', '.join(SIZES)}, "
            f"found {', '.join(sorted(twice))}: rename the folder"
        )
    console.print(_costs(config, corpus, others))
    with run_folder.open_run_folder(
        f"{config.run_dir}/{config.gold}", config, free=FREE, software=f"jax {jax.__version__}"
    ) as folder:
        family, losses = _family(config, corpus, console)
        tasks = _tasks(config, corpus, family, folder, console)
        names = [name for name in family if name in config.sizes]
        languages = [family[name] for name in names] + others
        results, facts = _results(config, corpus, languages, losses, tasks, folder, console)
        _write(config, results, facts, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            "scaling.png"
        )


def seconds(config: Config, parameters: int, tokens: int) -> float:
    """Returns a rough cost of all arms of one model on 2 CPU cores, from measured runs.

    Args:
      config: the config.
      parameters: of the model.
      tokens: of a prompt with a response.
    """
    documents = config.num_seeds * config.num_updates * config.batch_size
    trained = len([arm for arm in config.arms if arm not in UNTRAINED])
    weight = trained + len([arm for arm in config.arms if arm in NEED_REWARD])
    return 15 + weight * documents * tokens * (6 * parameters / 60e9 + 2e-6)


def _costs(config: Config, corpus: Corpus, others: list[tuple[Language, Params]]) -> str:
    """Returns the expected cost of every model, as one line."""
    parts = []
    length = config.prompt_length + config.response_length + 4
    for size in config.sizes:
        language = family_language(config, size, corpus)
        number = count_parameters(jax.eval_shape(language.lm.init, jax.random.key(0)))
        pretraining = config.pretraining_tokens * (6 * number / 30e9 + 1e-5)
        cost = pretraining + seconds(config, number, length)
        parts.append(f"{size} {cost / 60:.0f}")
    for language, params in others:
        cost = seconds(config, count_parameters(params), length // 2)
        parts.append(f"{language.name} {cost / 60:.0f}")
    return (
        f"scaling, {config.gold}: {config.num_seeds} seeds, arms {', '.join(config.arms)}; rough "
        f"minutes on 2 CPU cores: {', '.join(parts)}"
    )


def _family(
    config: Config, corpus: Corpus, console: Console
) -> tuple[dict[str, tuple[Language, Params]], dict[str, float]]:
    """Returns the family in order of size, the reference among it, and their held-out losses."""
    wanted = {*config.sizes, config.reference}
    family: dict[str, tuple[Language, Params]] = {}
    losses: dict[str, float] = {}
    folder = Path(config.family_dir or f"{config.run_dir}/family")
    with progress_bar(console, len(wanted) * num_steps(config)) as advance:
        for size in SIZES:
            if size in wanted:
                language = family_language(config, size, corpus)
                report = partial(advance, f"pretraining {size}")
                report(0)
                params, losses[size] = load_family_member(config, language, corpus, folder, report)
                family[size] = language, params
    return family, losses


def _tasks(
    config: Config,
    corpus: Corpus,
    family: dict[str, tuple[Language, Params]],
    folder: Path,
    console: Console,
) -> tuple[Any, list[Task]]:
    """Returns the judge, and the texts of every seed."""
    judge = make_judge(config, corpus, make_gold(config, corpus), *family[config.reference])
    tasks = []
    with progress_bar(console, config.num_seeds) as advance:
        for number in range(config.num_seeds):
            advance("texts of the seeds", 0)
            tasks.append(load_task(config, judge, number, folder / "tasks" / f"{number}.json"))
            advance("texts of the seeds", 1)
    return judge, tasks


def _results(
    config: Config,
    corpus: Corpus,
    languages: list[tuple[Language, Params]],
    losses: dict[str, float],
    tasks: tuple[Any, list[Task]],
    folder: Path,
    console: Console,
) -> tuple[Results, dict[str, dict[str, Any]]]:
    """Runs what is not in the folder yet, and reads the rest; also returns facts of the models."""
    judge, texts = tasks
    arms = tuple(dict.fromkeys(config.arms))
    results: Results = {}
    facts: dict[str, dict[str, Any]] = {}
    with progress_bar(console, len(languages) * len(arms) * config.num_seeds) as advance:
        for language, params in languages:
            name = language.name
            model: Model = make_model(config, language, params, texts)
            facts[name] = {"parameters": count_parameters(params)}
            if name in losses:
                facts[name]["loss"] = losses[name]
            results[name] = {}
            # Of a pretrained model with its weights: another may have the same name.
            own = name if name in losses else f"{name}-{weights_hash(params)[:8]}"
            place = folder / "arms" / own
            for arm in arms:
                report = partial(advance, f"{name}, {arm}")
                report(0)
                results[name][arm] = run_arm(model, judge, arm, place, report)
    return results, facts


def _write(
    config: Config,
    results: Results,
    facts: dict[str, dict[str, Any]],
    folder: Path,
    console: Console,
) -> None:
    """Writes metrics.csv, summary.json and the figure, and prints the tables."""
    rows = [
        row
        for name, arms in results.items()
        for arm, measures in arms.items()
        for row in run_folder.metric_rows(
            name, config.gold, arm, updates_of(config, measures["gold"].shape[1]), measures
        )
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    summary = summarise(config, results, facts)
    run_folder.write_json(folder / "summary.json", summary)
    plot.draw(config, results, summary, folder / "scaling.png")
    console.print(share_table(config, summary))
    console.print(model_table(summary))
    if summary.get("differences"):
        console.print(difference_table(summary))
    if summary["beside"]:
        console.print(beside_table(summary))


def updates_of(config: Config, num_rounds: int) -> np.ndarray:
    """Returns the updates after which the last rounds of an arm were measured."""
    each = config.num_updates // config.num_rounds
    return config.num_updates - each * np.arange(num_rounds)[::-1]


if __name__ == "__main__":
    binary.main(Config, experiment)
