"""`python -m experiments.agency.run`: see README.md beside this file."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.agency.agents import Agent, make_agent, num_parameters
from experiments.agency.config import ARMS, OWN_MODEL, STARTS, Config
from experiments.agency.process import (
    Input,
    Setting,
    Shared,
    agency_process,
    first_inputs,
    make_start,
)
from experiments.agency.report import write_results
from experiments.common import threads
from experiments.common.chunks import equal_chunks, run_seeds
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, ARMS)
    binary.choose("start", config.starts, STARTS)
    binary.at_least(
        config,
        num_seeds=2,
        seeds_at_once=1,
        num_operations=1,
        max_operand=2,
        num_demonstrations=1,
        num_shown=1,
        width=4,
        num_layers=1,
        num_heads=1,
        pretraining_updates=1,
        num_rounds=2,
        imitation_rounds=1,
        updates_per_round=1,
        num_samples=2,
        num_evaluated=1,
        num_tries=1,
        chunk_rounds=1,
    )
    binary.at_least(config, batch_size=config.num_samples)
    binary.positive(config, "learning_rate", "rl_rate")
    binary.check_ranges(config, {"num_companies": binary.whole(3, 30)})
    _check_together(config)


def _check_together(config: Config) -> None:
    """Raises a UsageError if flags do not fit each other."""
    if config.width % (2 * config.num_heads):
        raise binary.UsageError(
            f"--width must be a multiple of twice --num_heads={config.num_heads}, found "
            f"{config.width}"
        )
    if config.imitation_rounds >= config.num_rounds:
        raise binary.UsageError(
            f"--imitation_rounds must be below --num_rounds={config.num_rounds}, so that RL has "
            f"rounds too, found {config.imitation_rounds}"
        )
    if config.batch_size % config.num_samples:
        raise binary.UsageError(
            f"--batch_size must be a multiple of --num_samples={config.num_samples}, found "
            f"{config.batch_size}"
        )
    if not 0 <= config.quality <= 1 or not 0 <= config.price < 0.5 or not config.beta >= 0:
        raise binary.UsageError(
            "expected --quality from 0 to 1, --price from 0 to below .5 and --beta of at least 0, "
            f"found {config.quality}, {config.price} and {config.beta}"
        )
    if config.num_shown > 2 * config.num_demonstrations:
        raise binary.UsageError(
            "--num_shown must be at most twice --num_demonstrations="
            f"{config.num_demonstrations}, found {config.num_shown}"
        )
    is_own = config.model_name_or_path == OWN_MODEL
    if "pretrained" in config.starts and is_own and config.environment == "arithmetic":
        raise binary.UsageError(
            "--starts=pretrained needs text to have read: --environment=library, or a "
            "--model_name_or_path such as stories260k"
        )


def experiment(config: Config) -> None:
    """Runs every arm from every start, then writes and prints the results."""
    check(config)
    threads.allow()
    console = open_console()
    agent = make_agent(config)
    updates = config.num_rounds * config.updates_per_round
    starts, arms = dict.fromkeys(config.starts), dict.fromkeys(config.arms)
    console.print(
        f"agency in {config.environment}: {config.num_seeds} seeds, "
        f"{num_parameters(agent):,} parameters, starts {', '.join(starts)}, arms "
        f"{', '.join(arms)}; {updates} updates of {config.batch_size} episodes of up to "
        f"{agent.world.limits['max_length']} tokens each, about {minutes(config, agent):.0f} "
        "minutes on one CPU core"
    )
    free = ("run_dir", "arms", "starts")
    with run_folder.open_run_folder(config.run_dir, config, free=free) as folder:
        began = time.perf_counter()
        results = {}
        begin = make_start(config, agent)
        prompt = make_start(config, agent, num_shown=config.num_shown)
        with progress_bar(console, len(starts) * len(arms) * config.num_rounds) as advance:
            for start in starts:
                inputs = first_inputs(config, agent, start)
                for arm in arms:
                    advance(label(start, arm), 0)
                    results[label(start, arm)] = _run(
                        Setting(config, agent, arm),
                        prompt if arm == "prompting" else begin,
                        inputs,
                        folder / "arms" / label(start, arm),
                        partial(advance, label(start, arm)),
                    )
        write_results(config, agent, results, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            "agency.png"
        )


def label(start: str, arm: str) -> str:
    """Returns the name of an arm from a start."""
    return arm if start == "scratch" else f"{start}_{arm}"


def _run(
    setting: Setting,
    start: Callable[..., Any],
    inputs: Input,
    folder: Path,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Returns the metrics of all seeds, `[S, 1 + rounds]`; prompting has no rounds."""
    config = setting.config
    is_prompting = setting.arm == "prompting"
    plan = equal_chunks(config.num_rounds, config.updates_per_round, config.chunk_rounds)
    found = run_seeds(
        agency_process(setting, start),
        inputs,
        folder,
        [] if is_prompting else plan,
        shared=(Shared(setting.agent.world.pool),),
        seeds_at_once=config.seeds_at_once,
        progress=advance,
    )
    if is_prompting:
        advance(config.num_rounds)
        found = {k: np.repeat(v[:, :1], 1 + config.num_rounds, axis=1) for k, v in found.items()}
    return found


def minutes(config: Config, agent: Agent) -> float:
    """Returns a rough cost on a CPU core: 18 GFLOP/s, and updates of RL of twice the tokens."""
    updates = config.num_rounds * config.updates_per_round
    late = 1 - config.imitation_rounds / config.num_rounds
    passes = {"imitation": 1.0, "rl": 2.0, "imitation_rl": 1 + late, "imitation_search": 1 + late}
    tokens = updates * config.batch_size * agent.world.limits["max_length"] * config.num_seeds
    work = sum(passes.get(arm, 0.1) for arm in config.arms) * len(config.starts)
    return len(config.arms) * 0.5 + 6 * num_parameters(agent) * tokens * work / 18e9 / 60


if __name__ == "__main__":
    binary.main(Config, experiment)
