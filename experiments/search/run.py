"""`python -m experiments.search.run`: see README.md beside this file."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from rich.console import Console

from experiments.common.kept import load_or_run
from experiments.search import plot
from experiments.search.config import (
    BEST_OF,
    BY_PPO,
    LAWS_A_TOKEN,
    OF_SCRIPTED,
    OF_SETTING,
    SEARCHES,
    TRAINED,
    Config,
    SettingName,
    Settled,
    budgets_of,
    settled,
)
from experiments.search.cost import minutes
from experiments.search.pretrained.setting import check_pretrained, checksums, open_pretrained
from experiments.search.pretrained.world import load_world
from experiments.search.setting import Setting, check_exact, open_exact
from experiments.search.summary import BASELINE, Results, summarise, summary_table
from shatter.cli.common import binary, run_folder
from shatter.cli.common.frozen import count_parameters
from shatter.cli.common.progress import open_console, progress_bar


def check(config: Config) -> Settled:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Returns:
      The config, in which every flag has a value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("setting", (config.setting,), get_args(SettingName))
    binary.choose("arm", config.arms, (*SEARCHES, TRAINED, BY_PPO))
    binary.choose("twist", (config.twist,), ("learned", "exact"))
    _refuse_unread(config)
    config = settled(config)
    binary.at_least(
        config,
        num_seeds=2,
        num_draws=1,
        vocab_size=3,
        max_length=2,
        num_comparisons=1,
        twist_steps=1,
        policy_steps=1,
        batch_size=2,
        num_prompts=1,
        num_base_samples=8,
        num_components=1,
        num_actions=1,
        rank=1,
    )
    binary.positive(config, "beta", "twist_rate", "policy_rate")
    if not 0 <= config.misfit < 1:
        raise binary.UsageError(f"--misfit must be in [0, 1), found {config.misfit}")
    if not config.budgets or sorted(set(config.budgets)) != list(config.budgets):
        raise binary.UsageError(f"--budgets must ascend, found {config.budgets}")
    if config.budgets[0] < config.max_length:
        raise binary.UsageError(
            f"--budgets must be at least one response, --max_length={config.max_length} tokens, "
            f"found {config.budgets[0]}"
        )
    for arm in config.arms:
        if arm in SEARCHES and not budgets_of(config, arm):
            raise binary.UsageError(
                f"--budgets: {arm} needs {LAWS_A_TOKEN[arm] * config.max_length} tokens, "
                f"found {config.budgets} at most: raise the largest"
            )
    (check_exact if config.setting == "exact" else check_pretrained)(config)
    return config


def _refuse_unread(config: Config) -> None:
    """Raises a UsageError if a flag is given that this setting, or this reward, does not read."""
    unset = Config()
    for setting, flags in OF_SETTING.items():
        for flag in flags:
            value = getattr(config, flag)
            if setting != config.setting and value != getattr(unset, flag):
                raise binary.UsageError(
                    f"--{flag} needs --setting={setting}, found --{flag}={value} with "
                    f"--setting={config.setting}: leave one of them out"
                )
    for flag in OF_SCRIPTED if config.reward_model else ():
        if getattr(config, flag) is not None:
            raise binary.UsageError(
                f"--{flag} is about the scripted gold reward, in the place of which --reward_model "
                "stands: leave one of them out"
            )


def experiment(config: Config) -> None:
    """Runs every arm at every budget, then writes and prints the results."""
    config = check(config)
    console = open_console()
    began = time.perf_counter()
    opener: Callable[[Path], Setting] = lambda folder: open_exact(config)
    models: dict[str, str] = {}
    size: tuple[int, ...] = ()
    if config.setting == "pretrained":
        world, fixed = load_world(config)
        opener, models = partial(open_pretrained, world, fixed), checksums(fixed)
        size = count_parameters(fixed.params), 2 * world.sizes.width
    console.print(
        f"search, {config.setting}: {config.num_seeds} seeds, {len(config.arms)} arms, budgets up "
        f"to {config.budgets[-1]} tokens; about {minutes(config, *size):,.0f} minutes on one CPU "
        "core"
    )
    free, software = ("run_dir", "data_dir", "arms"), f"jax {jax.__version__}"  # arms are paired
    with run_folder.open_run_folder(
        config.run_dir, config, free=free, software=software, **models
    ) as folder:
        setting = opener(folder)
        results, budgets = _results(config, setting, folder, console)
        _write(config, setting, results, budgets, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s, {time.process_time():.0f} s of processors. "
            f"Results in {folder}: metrics.csv, summary.json, search.png"
            f"{', texts.json' if setting.text else ''}"
        )


def _results(
    config: Settled, setting: Setting, folder: Path, console: Console
) -> tuple[Results, dict[str, list[int]]]:
    """Runs what is not in the folder yet, and reads the rest."""
    names = tuple(dict.fromkeys((BASELINE, *config.arms)))
    budgets = {arm: budgets_of(config, arm) for arm in names if arm in SEARCHES}
    total = sum(map(len, budgets.values())) + sum(arm in BEST_OF for arm in names)
    results: Results = {}
    with progress_bar(console, total) as advance:
        for arm in names:
            advance(arm, 0)
            if arm in BEST_OF:
                metrics = load_or_run(_file(folder, arm), partial(setting.train, arm))
                best = {name: metrics.pop(f"best_{name}") for name in ("learned", "gold")}
                metrics.pop("best", None)
                results |= {arm: metrics, BEST_OF[arm]: best}
                budgets[BEST_OF[arm]] = list(config.budgets)
                advance(arm, 1)
                continue
            parts = []
            for budget in budgets[arm]:
                run = partial(setting.search, arm, budget)
                parts.append(load_or_run(_file(folder, arm, budget), run))
                advance(arm, 1)
            means = [name for name, values in parts[0].items() if values.ndim == 1]
            results[arm] = {name: np.stack([p[name] for p in parts], axis=1) for name in means}
    return results, budgets


def _file(folder: Path, arm: str, budget: int | None = None) -> Path:
    """Returns the file of an arm, of a search at one budget."""
    return folder / "arms" / (f"{arm}.npz" if budget is None else f"{arm}_{budget}.npz")


def _write(
    config: Settled,
    setting: Setting,
    results: Results,
    budgets: dict[str, list[int]],
    folder: Path,
    console: Console,
) -> None:
    """Writes metrics.csv, summary.json, texts and the figure, and prints the table."""
    rows = [
        row
        for arm, metrics in results.items()
        for row in run_folder.metric_rows(
            config.setting,
            config.twist,
            arm,
            np.arange(1 + config.policy_steps) if arm in BEST_OF else np.array(budgets[arm]),
            metrics,
        )
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    summary = summarise(config, results, budgets, setting.facts)
    run_folder.write_json(folder / "summary.json", summary)
    if setting.text is not None:
        run_folder.write_json(folder / "texts.json", _texts(config, setting, results, folder))
    plot.draw(config, results, budgets, setting.optima, folder / "search.png")
    console.print(summary_table(config, summary, list(config.budgets[::2])))


def _texts(config: Settled, setting: Setting, results: Results, folder: Path) -> dict[str, list]:
    """Returns by arm, at its largest budget, a response to every prompt of every seed."""
    assert setting.text is not None
    texts = {}
    for arm in results:
        if arm in SEARCHES or arm in BEST_OF:
            budget = budgets_of(config, arm)[-1] if arm in SEARCHES else None
            best = run_folder.load_arrays(_file(folder, arm, budget))["best"]
            name = BEST_OF.get(arm, arm)
            texts[name] = [[setting.text(row) for row in of_seed] for of_seed in best]
    return texts


if __name__ == "__main__":
    binary.main(Config, experiment)
