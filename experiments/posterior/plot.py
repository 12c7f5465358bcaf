"""The figures of the posterior experiment."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.common.didactic import World
from experiments.posterior.arms import Results
from experiments.posterior.config import Config
from experiments.posterior.interface import LAWS
from experiments.posterior.plot_laws import draw_constraints, draw_frontier
from experiments.posterior.problem import draw_problem, gaussian_reward, measure
from shatter import evaluation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLLAPSE_TITLES = {
    "reward": "E r",
    "entropy": "entropy, nats",
    "kl": "KL(pi || p0), nats",
    "target_kl": "KL(p* || pi), nats",
}
WITHOUT_BETA = {"reward": "reward alone", "reward_exact": "reward alone, exact gradient"}


def draw(config: Config, world: World, results: Results, steps: np.ndarray, folder: Path) -> Path:
    """Draws the figure that the config names.

    Args:
      config: the config.
      world: the model and all documents.
      results: metrics `[S, 1 + R]` by setting, objective and arm.
      steps: `[1 + R]`, gradient steps.
      folder: the PNG is written to this folder.

    Returns:
      The PNG's path.
    """
    figure = {
        "collapse": lambda: _collapse(config, world, results, steps),
        "frontier": lambda: draw_frontier(config, world, results),
        "constraints": lambda: draw_constraints(config, results),
        "interface": lambda: _interface(results),
    }[config.figure]()
    path = folder / f"{config.figure}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _collapse(config: Config, world: World, results: Results, steps: np.ndarray) -> Any:
    """Draws measures over training, beside those of the best document alone."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), constrained_layout=True)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(config.betas)))
    shades = dict(zip(config.betas, colors, strict=True))
    for (_, objective, arm), metrics in results.items():
        if arm == "no beta":
            style: dict[str, Any] = {"color": "tab:red"}
            style["linestyle"] = "--" if objective == "reward_exact" else "-"
            label = WITHOUT_BETA.get(objective, objective)
        else:
            style = {"color": shades[float(arm.removeprefix("beta="))]}
            label = f"{objective}, {arm}"
        for axis, name in zip(axes, COLLAPSE_TITLES, strict=True):
            values = metrics[name]
            axis.plot(steps, values.mean(axis=0), label=label, **style)
            low, high = np.quantile(values, [0.1, 0.9], axis=0)
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    best = _best_document(config, world)
    for axis, (name, title) in zip(axes, COLLAPSE_TITLES.items(), strict=True):
        if name != "target_kl":  # infinite, because the best document has all the mass
            line = {"color": "black", "linestyle": ":", "linewidth": 1}
            axis.axhline(best[name], label="best document alone", **line)
        axis.set_title(title)
        axis.set_xlabel("gradient steps")
    axes[3].set_yscale("symlog", linthresh=0.1)
    axes[3].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _best_document(config: Config, world: World) -> dict[str, float]:
    """Returns the measures of the optimum of the reward alone, means over seeds.

    They are computed with the table, whose law a transformer is fitted to.
    """
    world = world._replace(lm=world.table)

    def one_seed(key: jax.Array) -> dict[str, jax.Array]:
        problem = draw_problem(jax.random.split(key)[0], jnp.ones(()), world, gaussian_reward)
        return measure(problem, evaluation.reward_optimum(problem.log_p0, problem.rewards))

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    measured = jax.jit(lambda keys: jax.lax.map(one_seed, keys))(keys)
    return {name: float(np.mean(values)) for name, values in measured.items()}


def _interface(results: Results) -> Any:
    """Draws the mean of log pi against entropy, and what each law lacks, along the temperature."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True)
    for law, marker in zip(LAWS, ("o-", "s--"), strict=True):
        arms = {arm: metrics for (_, name, arm), metrics in results.items() if name == law}
        means = [{k: float(v.mean()) for k, v in metrics.items()} for metrics in arms.values()]
        column = lambda name, means=means: [row[name] for row in means]
        axes[0].plot(column("entropy"), column("return"), marker, label=law.replace("_", " "))
        temperatures = [float(arm.removeprefix("temperature=")) for arm in arms]
        axes[1].plot(temperatures, column("lacking"), marker)
    axes[0].set_xlabel("entropy, nats")
    axes[0].set_ylabel("E log pi, nats")
    axes[0].legend(frameon=False)
    axes[1].set_xscale("log")
    axes[1].set_xticks(temperatures, [f"{t:g}" for t in temperatures])
    axes[1].minorticks_off()
    axes[1].set_xlabel("temperature")
    axes[1].set_ylabel("V(root) - E log pi - temperature * entropy, nats")
    return figure
