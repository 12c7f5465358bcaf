"""The pretrained setting, as the run sees it."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.search.config import BY_PPO, Settled, budgets_of
from experiments.search.pretrained import arms
from experiments.search.pretrained.problem import Problem
from experiments.search.pretrained.world import JUDGE_FLAGS, Fixed, World
from experiments.search.setting import Arrays, Setting
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import weights_hash


def check_pretrained(config: Settled) -> None:
    """Raises a UsageError if a flag has a value that it cannot have with a pretrained model."""
    if config.twist != "learned":
        raise UsageError(
            f"--twist={config.twist} needs documents that can be enumerated: leave it out with "
            "--setting=pretrained"
        )
    if BY_PPO in config.arms:
        raise UsageError(f"--arms: {BY_PPO} is an arm of --setting=exact: leave it out")
    if config.num_prompts > len(config.prompts):
        raise UsageError(
            f"--num_prompts must be at most the number of --prompts, {len(config.prompts)}, found "
            f"{config.num_prompts}"
        )
    given = [flag for flag in JUDGE_FLAGS if getattr(config, flag)]
    if len(given) == 1:
        missing = next(flag for flag in JUDGE_FLAGS if flag not in given)
        raise UsageError(
            f"--{given[0]} needs --{missing}, a judge that has learned from other votes: see "
            "experiments/search/README.md for how to train both"
        )


def checksums(fixed: Fixed) -> dict[str, str]:
    """Returns the checksums of the models, which a resumed run shares."""
    judges = {f: weights_hash(judge) for f, judge in zip(JUDGE_FLAGS, fixed.judges, strict=False)}
    return {"model": weights_hash(fixed.params), **judges}


def open_pretrained(world: World, fixed: Fixed, folder: Path) -> Setting:
    """Returns the pretrained setting, whose problems are kept in the run folder."""
    config, drawn = world.config, _kept_problems(world, fixed, folder / "problems.npz")

    def train(arm: str) -> Arrays:
        del arm  # there is one
        metrics, adapters = arms.run_training(world, fixed, drawn)
        budgets = budgets_of(config, "best_of_n")
        found = [
            arms.run_search(world, fixed, drawn, "best_of_n", budget, adapters)
            for budget in budgets
        ]
        best = {
            f"best_{name}": np.stack([part[name] for part in found], axis=1)
            for name in ("learned", "gold")
        }
        return metrics | best | {"best": found[-1]["best"]}

    def text(tokens: np.ndarray) -> str:
        return world.tokenizer.decode(tokens[tokens >= 0].tolist())

    return Setting(
        search=partial(arms.run_search, world, fixed, drawn),
        train=train,
        facts=jax.tree.map(np.asarray, drawn.facts),
        optima={},
        text=text,
    )


def _kept_problems(world: World, fixed: Fixed, file: Path) -> Problem:
    """Returns the problems of all seeds, which are drawn once."""
    draw = partial(arms.problems, world)
    if file.exists():
        arrays = run_folder.load_arrays(file)
        leaves, tree = jax.tree.flatten(jax.eval_shape(draw, fixed))
        problem: Problem = jax.tree.unflatten(tree, [arrays[str(n)] for n in range(len(leaves))])
        return problem
    drawn = jax.jit(draw, compiler_options=compiler_options())(fixed)
    arrays = {str(n): np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(drawn))}
    run_folder.save_arrays(file, arrays)
    return drawn
