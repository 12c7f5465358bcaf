"""The figures of the inclusive experiment."""

import textwrap
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np

from experiments.inclusive.config import Config
from experiments.inclusive.plan import answers_after
from experiments.inclusive.populations import Population

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Curves = dict[str, np.ndarray]
PANELS = 6
STYLE: dict[str, dict[str, Any]] = {
    "random_map": {"color": "black", "linestyle": "--"},
    "greedy": {"color": "tab:red", "linestyle": "--"},
    "boltzmann": {"color": "tab:orange", "linestyle": "--"},
    "random": {"color": "black"},
    "thompson": {"color": "tab:blue"},
    "double_thompson": {"color": "tab:cyan"},
    "double_thompson_sampled": {"color": "tab:purple"},
    "infomax": {"color": "tab:green"},
    "variance": {"color": "tab:olive"},
    "log_ratio_variance": {"color": "tab:brown"},
    "ucb": {"color": "tab:pink"},
}


def draw(
    config: Config,
    population: Population,
    results: dict[str, Curves],
    fits: dict[str, Curves],
    points: dict[str, Curves],
    folder: Path,
) -> Path:
    """Draws three measures against answers, and people's shares beside predicted ones.

    Args:
      config: the config.
      population: the recorded people.
      results: metrics `[S, 1 + R, ...]` of every arm.
      fits: curves `[S, B]` of the Bradley-Terry fits, at the answers `fits[...]["answers"]`.
      points: measures `[S]` and predictions `[S, P, K]` of laws that need no answers.
      folder: where the PNG goes.

    Returns:
      The PNG's path.
    """
    figure = plt.figure(figsize=(15, 9), constrained_layout=True)
    top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=(1, 1.1)))
    left, middle, right = top.subplots(1, 3)
    for axis, metric in zip(
        (left, middle, right), ("kl", "choice_log_loss", "best_known"), strict=True
    ):
        _curves(axis, config, results, fits, metric)
    left.set(yscale="log", title="KL(judges' shares || prediction), nats")
    middle.set(title="log-loss per comparison of the judges, nats")
    right.set(title="prompts whose best option is known", ylim=(0.0, 1.02))
    if "people" in points:
        left.axhline(points["people"]["kl"].mean(), color="0.5", linewidth=0.8)
    handles, labels = left.get_legend_handles_labels()
    top.legend(handles, labels, loc="outside right center", frameon=False)
    _shares(bottom, population, results, points)
    path = folder / f"{config.dataset}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _curves(
    axis: Any, config: Config, results: dict[str, Curves], fits: dict[str, Curves], metric: str
) -> None:
    answers = answers_after(config)
    for arm, metrics in results.items():
        values = metrics[metric][:, 1:]
        mean, error = values.mean(axis=0), 1.96 * values.std(axis=0, ddof=1) / len(values) ** 0.5
        (line,) = axis.plot(answers, mean, label=arm, **STYLE[arm])
        axis.fill_between(answers, mean - error, mean + error, color=line.get_color(), alpha=0.12)
    for marker, (name, curves) in zip("^vs", fits.items(), strict=False):
        axis.plot(
            curves["answers"][0],
            curves[metric].mean(axis=0),
            marker=marker,
            color="0.5",
            label=name,
        )
    axis.set(xscale="log", xlabel="answers a prompt")


def _shares(
    bottom: Any, population: Population, results: dict[str, Curves], points: dict[str, Curves]
) -> None:
    """Draws the shares of the judges, of inclusive learning and of the agglomerative optimum."""
    picked = _prompts_shown(population)
    name = next(n for n in ("random_map", "random", *results) if n in results)
    agglomerative = next(n for n in points if n.startswith("agglomerative"))
    laws = {
        "people (judges)": population.truth.mean(axis=0),
        f"inclusive ({name})": results[name]["prediction"][:, -1].mean(axis=0),
        agglomerative: points[agglomerative]["prediction"].mean(axis=0),
    }
    axes = bottom.subplots(1, len(picked), squeeze=False)[0]
    for axis, p in zip(axes, picked, strict=True):
        options = population.options[p]
        order = np.argsort(laws["people (judges)"][p, : len(options)])[-12:]
        for i, (label, table) in enumerate(laws.items()):
            axis.barh(np.arange(len(order)) - 0.28 * (i - 1), table[p, order], 0.26, label=label)
        text = {
            "parse_math": False
        }  # matplotlib would take what stands between two $ for a formula
        axis.set_yticks(range(len(order)), [_two_lines(options[k]) for k in order], **text)
        title = textwrap.fill(textwrap.shorten(population.prompts[p], 110), 26)
        axis.set_title(title, fontsize=8, **text)
        axis.tick_params(labelsize=7)
    bottom.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _prompts_shown(population: Population) -> np.ndarray:
    """Returns evenly spaced prompts, or, with groups, the question on which they differ most."""
    num_prompts = len(population.prompts)
    if not population.groups:
        return np.linspace(0, num_prompts - 1, min(PANELS, num_prompts)).astype(int)
    truth = population.truth.mean(axis=0)
    rows = [np.flatnonzero(population.question == q) for q in np.unique(population.question)]
    return max(rows, key=lambda row: truth[row].var(axis=0).sum())[:PANELS]


def _two_lines(text: str) -> str:
    return textwrap.fill(textwrap.shorten(text, 48, placeholder=" ..."), 26)
