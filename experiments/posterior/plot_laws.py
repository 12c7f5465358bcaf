"""The figures that show each law as one point: the frontier and the constraints."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.common.didactic import World
from experiments.posterior.arms import Results
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
    "kl_penalty_k2": ("$2$", "tab:cyan"),
    "kl_penalty_k3": ("$3$", "tab:cyan"),
    "ppo": ("D", "tab:purple"),
    "fdpg_forward_kl": ("v", "tab:green"),
    "fdpg_reverse_kl": ("<", "tab:green"),
    "fdpg_jensen_shannon": (">", "tab:green"),
    "fdpg_total_variation": ("1", "tab:green"),
    "fdpg_forward_chi2": ("2", "tab:green"),
    "fdpg_reverse_chi2": ("3", "tab:green"),
    "gdc": ("p", "tab:olive"),
    "rejection_sft": ("s", "tab:olive"),
    "dpo": ("h", "tab:brown"),
    "xpo": ("$x$", "tab:brown"),
    "selm": ("$s$", "tab:brown"),
    "ilhf": ("*", "tab:pink"),
    "best_of_n": ("+", "0.5"),
    "rejection": ("d", "0.5"),
    "importance": ("x", "0.5"),
    "smc": ("P", "black"),
    "weighted_decoding": ("H", "black"),
}
"""Marker and colour of every objective and sampler."""


def draw_frontier(config: Config, world: World, results: Results) -> Any:
    """Draws reward against KL(pi || p0), and what each law lacks to the frontier at the same KL."""
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
    """Returns KL and reward of p* along beta for every seed, `[S, N]`, in ascending KL."""
    betas = jnp.geomspace(30.0, 0.005, 200)

    def one_seed(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        problem = draw_problem(jax.random.split(key)[0], jnp.ones(()), world, gaussian_reward)
        return evaluation.reward_kl_frontier(problem.log_p0, problem.rewards, betas)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    kl, reward = jax.jit(lambda keys: jax.lax.map(one_seed, keys))(keys)
    return np.asarray(kl), np.asarray(reward)


def draw_constraints(config: Config, results: Results) -> Any:
    """Draws the share of satisfied documents against KL(pi || p0) and against diversity."""
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
