"""The figures of the posterior experiment."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.common.didactic import World
from experiments.posterior.config import Config
from experiments.posterior.problem import draw_problem, gaussian_reward
from shatter import evaluation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MARKERS = {
    "reward": ("X", "tab:red"),
    "reward_exact": ("x", "tab:red"),
    "kl_control": ("o", "tab:blue"),
    "kl_control_exact": (".", "tab:blue"),
    "kl_control_token": ("s", "tab:blue"),
    "rloo": ("^", "tab:cyan"),
    "ppo": ("D", "tab:purple"),
    "fdpg_forward_kl": ("v", "tab:green"),
    "fdpg_reverse_kl": ("<", "tab:green"),
    "fdpg_jensen_shannon": (">", "tab:green"),
    "fdpg_total_variation": ("1", "tab:green"),
    "fdpg_forward_chi2": ("2", "tab:green"),
    "fdpg_reverse_chi2": ("3", "tab:green"),
    "gdc": ("p", "tab:olive"),
    "dpo": ("h", "tab:brown"),
    "ilhf": ("*", "tab:pink"),
    "best_of_n": ("+", "0.5"),
    "rejection": ("d", "0.5"),
    "importance": ("x", "0.5"),
    "smc": ("P", "black"),
    "weighted_decoding": ("H", "black"),
}
Results = dict[tuple[str, str, str], dict[str, np.ndarray]]


def draw(config: Config, world: World, results: Results, steps: np.ndarray, folder: Path) -> Path:
    """Draws the config's figure.

    Args:
      config: the config.
      world: the model and all documents.
      results: metrics `[S, 1 + R]` by setting, objective and arm.
      steps: `[1 + R]`, gradient steps.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    figure = {"collapse": _collapse, "frontier": _frontier, "constraints": _constraints}[
        config.figure
    ](config, world, results, steps)
    path = folder / f"{config.figure}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _collapse(config: Config, world: World, results: Results, steps: np.ndarray) -> Any:
    shown = {
        "reward": "E r",
        "entropy": "entropy, nats",
        "kl": "KL(pi || p0), nats",
        "target_kl": "KL(p* || pi), nats",
    }
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), constrained_layout=True)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(config.betas)))
    shades = dict(zip(config.betas, colors, strict=True))
    for (_, objective, arm), metrics in results.items():
        if arm == "no beta":
            style: dict[str, Any] = {"color": "tab:red"}
            style["linestyle"] = "--" if objective == "reward_exact" else "-"
            label = {"reward": "reward alone", "reward_exact": "reward alone, exact gradient"}.get(
                objective, objective
            )
        else:
            style = {"color": shades[float(arm.removeprefix("beta="))]}
            label = f"{objective}, {arm}"
        for axis, name in zip(axes, shown, strict=True):
            values = metrics[name]
            axis.plot(steps, values.mean(axis=0), label=label, **style)
            low, high = np.quantile(values, [0.1, 0.9], axis=0)
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    for axis, title in zip(axes, shown.values(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("gradient steps")
    axes[3].set_yscale("symlog", linthresh=0.1)
    axes[3].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _frontier(config: Config, world: World, results: Results, steps: np.ndarray) -> Any:
    """Left: reward against KL(pi || p0); right: what is lacking of the frontier at that KL."""
    figure, axes = plt.subplots(1, 2, figsize=(15.5, 5.6), constrained_layout=True)
    kls, rewards = _exact_frontier(config, world)  # [S, N]
    largest = 1.1 * max(float(metrics["kl"][:, -1].mean()) for metrics in results.values())
    mean_kl, mean_reward = kls.mean(axis=0), rewards.mean(axis=0)  # at equal beta
    shown = mean_kl <= largest
    axes[0].plot(mean_kl[shown], mean_reward[shown], color="black", label="exact frontier")
    axes[1].axhline(0, color="black")
    for (_, objective, _), metrics in results.items():
        marker, color = MARKERS[objective]
        kl, reward = metrics["kl"][:, -1], metrics["reward"][:, -1]
        best = [np.interp(x, k, r) for x, k, r in zip(kl, kls, rewards, strict=True)]
        style = {"color": color, "marker": marker, "markersize": 7, "linestyle": "none"}
        label = objective if objective not in _labels(axes[0]) else None
        lacking = np.asarray(best) - reward
        error = 1.96 * lacking.std() / np.sqrt(len(lacking))
        axes[0].plot(kl.mean(), reward.mean(), label=label, **style)
        axes[1].errorbar(kl.mean(), lacking.mean(), yerr=error, elinewidth=0.6, **style)
    axes[0].set_ylabel("E r")
    axes[1].set_ylabel("reward lacking to the frontier at the same KL")
    axes[1].set_yscale("symlog", linthresh=0.01)
    for axis in axes:
        axis.set_xlabel("KL(pi || p0), nats")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _labels(axis: Any) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def _exact_frontier(config: Config, world: World) -> tuple[np.ndarray, np.ndarray]:
    """KL and reward of p* along beta for every seed, `[S, N]`, KL ascending."""
    betas = jnp.geomspace(30.0, 0.005, 200)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        problem = draw_problem(jax.random.split(key)[0], jnp.ones(()), world, gaussian_reward)
        return evaluation.reward_kl_frontier(problem.log_p0, problem.rewards, betas)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    kl, reward = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return np.asarray(kl), np.asarray(reward)


def _constraints(config: Config, world: World, results: Results, steps: np.ndarray) -> Any:
    settings = list(dict.fromkeys(setting for setting, _, _ in results))
    figure, axes = plt.subplots(
        len(settings), 2, figsize=(14, 4.8 * len(settings)), constrained_layout=True, squeeze=False
    )
    for row, setting in zip(axes, settings, strict=True):
        for (of, objective, _), metrics in results.items():
            if of != setting:
                continue
            marker, color = MARKERS[objective]
            style = {"color": color, "marker": marker, "markersize": 7, "linestyle": "none"}
            satisfied = metrics["satisfied"][:, -1]
            for axis, name in zip(row, ("kl", "distinct"), strict=True):
                values = metrics[name][:, -1]
                label = objective if objective not in _labels(axis) else None
                axis.errorbar(
                    values.mean(),
                    satisfied.mean(),
                    xerr=1.96 * values.std() / np.sqrt(len(values)),
                    yerr=1.96 * satisfied.std() / np.sqrt(len(values)),
                    label=label,
                    elinewidth=0.6,
                    **style,
                )
        row[0].set_ylabel(f"{setting}: share that meets the constraint")
        if setting == "moment":
            for axis in row:
                axis.axhline(config.moment, color="black", linewidth=0.8)
    axes[-1, 0].set_xlabel("KL(pi || p0), nats")
    axes[-1, 1].set_xlabel("different documents among 100")
    handles: dict[str, Any] = {}
    for axis in axes[:, 0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure
