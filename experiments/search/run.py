"""`python -m experiments.search.run`: see README.md beside this file."""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.common.didactic import World, check_documents, make_world
from experiments.search import arms, plot
from experiments.search.config import BEST_OF_TRAINED, SEARCHES, TRAINED, Config
from experiments.search.problem import Problem, counts, least_squares
from experiments.search.summary import BASELINE, Results, summarise, summary_table
from shatter.cli.common import binary, run_folder
from shatter.cli.common.progress import open_console, progress_bar

MOST_DOCUMENTS = 5_000
BETAS = np.geomspace(0.03, 30.0, 40)


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Args:
      config: the config.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("arm", config.arms, (*SEARCHES, TRAINED))
    binary.choose("twist", (config.twist,), ("learned", "exact"))
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
        if arm != TRAINED and not arms.budgets_of(config, arm):
            raise binary.UsageError(
                f"--budgets: {arm} needs {arms.LAWS_A_TOKEN[arm] * config.max_length} tokens, "
                f"found {config.budgets} at most: raise the largest"
            )
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def experiment(config: Config) -> None:
    """Runs every arm at every budget, then writes and prints the results."""
    check(config)
    console = open_console()
    world = make_world("tabular", vocab_size=config.vocab_size, max_length=config.max_length)
    console.print(
        f"search: {config.num_seeds} seeds, {len(config.arms)} arms, budgets up to "
        f"{config.budgets[-1]} tokens, about {minutes(config):.0f} minutes on 2 CPU cores"
    )
    free, software = ("run_dir", "arms"), f"jax {jax.__version__}"  # arms are paired by seed
    with run_folder.open_run_folder(config.run_dir, config, free=free, software=software) as folder:
        began = time.perf_counter()
        drawn = arms.problems(config, world)
        results, budgets = _results(config, world, drawn, folder, console)
        _write(config, world, drawn, results, budgets, folder, console)
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            "search.png"
        )


def minutes(config: Config) -> float:
    """Returns a rough cost on 2 CPU cores: compilation, and tokens of trees."""
    programs = sum(len(arms.budgets_of(config, arm)) for arm in config.arms if arm != TRAINED)
    trees = sum(arm.startswith("tree") for arm in config.arms)
    tokens = trees * sum(config.budgets) * config.num_seeds * config.num_draws
    return programs * 3 / 60 + tokens * 2e-5 / 60


def _results(
    config: Config, world: World, drawn: Problem, folder: Path, console: Console
) -> tuple[Results, dict[str, list[int]]]:
    """Runs what is not in the folder yet, and reads the rest."""
    names = tuple(dict.fromkeys((BASELINE, *config.arms)))
    budgets = {arm: arms.budgets_of(config, arm) for arm in names if arm != TRAINED}
    total = sum(map(len, budgets.values())) + (TRAINED in names)
    results: Results = {}
    with progress_bar(console, total) as advance:
        for arm in names:
            advance(arm, 0)
            if arm == TRAINED:
                run = partial(arms.run_training, config, world, drawn)
                metrics = _kept(folder / "arms" / f"{arm}.npz", run)
                best = {name: metrics.pop(f"best_{name}") for name in ("learned", "gold")}
                results |= {arm: metrics, BEST_OF_TRAINED: best}
                budgets[BEST_OF_TRAINED] = list(config.budgets)
                advance(arm, 1)
                continue
            parts = []
            for budget in budgets[arm]:
                run = partial(arms.run_search, config, world, drawn, arm, budget)
                parts.append(_kept(folder / "arms" / f"{arm}_{budget}.npz", run))
                advance(arm, 1)
            results[arm] = {name: np.stack([p[name] for p in parts], axis=1) for name in parts[0]}
    return results, budgets


def _kept(path: Path, run: partial) -> dict[str, np.ndarray]:
    """Returns the metrics of a part of the run, which are computed once.

    Raises:
      UsageError: if a metric is not finite, or the file is damaged.
    """
    if path.exists():
        return run_folder.load_arrays(path)
    metrics = run()
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            raise binary.UsageError(f"{path.stem}: {name} is not finite at some seeds")
    run_folder.save_arrays(path, metrics)
    return metrics


def _facts(config: Config, world: World, drawn: Problem) -> dict[str, np.ndarray]:
    """Returns facts of every seed, `[S]`.

    How often the reward model is right, the variance of the gold reward, the share of it that no
    reward model can learn, and what the twist cost.
    """

    def one(problem: Problem) -> dict[str, jax.Array]:
        learned, gold = arms.rewards_of_all(config, world, problem)
        law = jnp.exp(world.log_probs(problem.params))
        difference = lambda values: values[:, None] - values[None, :]
        agree = (difference(learned) > 0) == (difference(gold) > 0)
        apart = (law[:, None] * law[None, :]) * ~jnp.eye(len(law), dtype=bool)
        variance = lambda values: law @ jnp.square(values - law @ values)
        features = counts(config, *world.space)
        rest = gold - features @ least_squares(law, features, gold)
        return {
            "accuracy": jnp.sum(apart * agree) / jnp.sum(apart),
            "gold_variance": variance(gold),
            "out_of_reach": variance(rest) / variance(gold),
            "twist_tokens": problem.twist_tokens.astype(float),
        }

    facts = jax.lax.map(one, drawn)
    return {name: np.asarray(values) for name, values in facts.items()}


def _write(
    config: Config,
    world: World,
    drawn: Problem,
    results: Results,
    budgets: dict[str, list[int]],
    folder: Path,
    console: Console,
) -> None:
    """Writes metrics.csv, summary.json and the figure, and prints the table."""
    rows = [
        row
        for arm, metrics in results.items()
        for row in run_folder.metric_rows(
            "exact",
            config.twist,
            arm,
            np.arange(1 + config.policy_steps) if arm == TRAINED else np.array(budgets[arm]),
            metrics,
        )
    ]
    run_folder.write_csv(folder / "metrics.csv", rows)
    summary = summarise(config, results, budgets, _facts(config, world, drawn))
    run_folder.write_json(folder / "summary.json", summary)
    optima = arms.frontier(config, world, drawn, BETAS)
    plot.draw(config, results, budgets, optima, folder / "search.png")
    console.print(summary_table(config, summary, list(config.budgets[::2])))


if __name__ == "__main__":
    binary.main(Config, experiment)
