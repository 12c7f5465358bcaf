"""What a run says: every arm at every size, the slopes of its curve, and how curves differ."""

from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import logit

from experiments.common.intervals import format_interval, mean_interval
from experiments.scaling.config import Config

Results = dict[str, dict[str, dict[str, np.ndarray]]]
"""By model and arm: measures `[S, rounds]`."""

COMPARED = (
    ("rl", "sft"),
    ("rl", "prompting"),
    ("sft_rl", "sft"),
    ("sft_rl", "prompting"),
    ("sft", "prompting"),
    ("rl", "best_of_n"),
    ("rl", "dpo"),
    ("rl", "ilhf"),
)
"""Pairs of arms whose curves are compared."""


def at_end(results: Results, arm: str, measure: str, models: list[str]) -> np.ndarray:
    """Returns a measure after the last update, `[S, models]`."""
    return np.stack([results[model][arm][measure][:, -1] for model in models], axis=1)


def slopes(values: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Returns every seed's slope against log10 of the parameters, by least squares.

    Args:
      values: `[S, N]`, of every seed and model.
      parameters: `[N]`, of the models, at least two different.

    Returns:
      `[S]`, per factor of ten.
    """
    return np.polyfit(np.log10(parameters), values.T, 1)[0]


def summarise(config: Config, results: Results, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns means with 95% bootstrap intervals over seeds.

    Args:
      config: the config.
      results: the measures.
      facts: of every model: parameters, and the held-out loss of those of the family.

    Returns:
      arms: their names. models: by model its facts and by arm the measures after the last update.
      slopes: by arm those of the family's curve, of the share's log-odds and of the gold reward,
      per factor of ten in parameters. differences: of pairs of arms, paired by seed, of both
      slopes, and of the share at every size of the family and on average. Slopes need two sizes.
      beside: by model beside the family the differences of the share, also from the base.
    """
    family = [name for name in facts if "loss" in facts[name]]
    arms = [*dict.fromkeys(arm for of_model in results.values() for arm in of_model)]
    models = {
        name: facts[name]
        | {
            arm: {measure: mean_interval(values[:, -1]) for measure, values in measures.items()}
            for arm, measures in results[name].items()
        }
        for name in facts
    }
    beside = {name: _share_differences(results[name]) for name in facts if name not in family}
    summary: dict[str, Any] = {"arms": arms, "models": models, "beside": beside}
    if len(family) < 2:
        return summary
    parameters = np.array([facts[name]["parameters"] for name in family])
    share = {arm: at_end(results, arm, "share", family) for arm in arms}
    of_share = {arm: slopes(logit(share[arm]), parameters) for arm in arms}
    of_gold = {arm: slopes(at_end(results, arm, "gold", family), parameters) for arm in arms}
    summary["slopes"] = {
        arm: {"log_odds": mean_interval(of_share[arm]), "gold": mean_interval(of_gold[arm])}
        for arm in arms
    }
    summary["differences"] = {
        f"{one} - {other}": {
            "log_odds_slope": mean_interval(of_share[one] - of_share[other]),
            "gold_slope": mean_interval(of_gold[one] - of_gold[other]),
            "share": mean_interval((share[one] - share[other]).mean(axis=1)),
            "share_by_size": {
                name: mean_interval(share[one][:, place] - share[other][:, place])
                for place, name in enumerate(family)
            },
        }
        for one, other in COMPARED
        if one in arms and other in arms
    }
    return summary


def _share_differences(of_model: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the differences between arms of one model's share, paired by seed."""
    from_base = [(arm, "base") for arm in of_model if arm != "base"]
    share = {arm: measures["share"][:, -1] for arm, measures in of_model.items()}
    return {
        f"{one} - {other}": mean_interval(share[one] - share[other])
        for one, other in (*from_base, *COMPARED)
        if one in share and other in share
    }


def share_table(config: Config, summary: dict[str, Any]) -> Table:
    """Returns the share preferred over the reference of every arm and model, with the slopes."""
    table = Table(
        title=f"share preferred over a response of {config.reference}, gold: {config.gold}",
        caption=f"means over {config.num_seeds} seeds [95%]; slopes: of the share's log-odds and "
        "of the gold reward per factor of ten in parameters, over the family",
    )
    table.add_column("arm")
    for name, about in summary["models"].items():
        table.add_column(f"{name} ({about['parameters']:,})")
    table.add_column("slope, log-odds")
    table.add_column("slope, gold")
    for arm in summary["arms"]:
        cells = [format_interval(of[arm]["share"]) for of in summary["models"].values()]
        slope = summary.get("slopes", {}).get(arm, {})
        ends = [format_interval(slope.get(measure)) for measure in ("log_odds", "gold")]
        table.add_row(arm, *cells, *ends)
    return table


def model_table(summary: dict[str, Any]) -> Table:
    """Returns the gold reward and the KL of every arm and model, and facts of the models."""
    table = Table(
        title="gold reward, KL(policy || base)",
        caption="means over seeds, nats; the last rows: held-out loss of the pretrained model, "
        "nats a character, and how often its reward model orders two of its responses rightly",
    )
    models = summary["models"].values()
    table.add_column("arm")
    for name in summary["models"]:
        table.add_column(name)
    for arm in summary["arms"]:
        means = [[of[arm][measure]["mean"] for measure in ("gold", "kl")] for of in models]
        table.add_row(arm, *(f"{gold:.2f}, {kl:.2f}" for gold, kl in means))
    table.add_row("held-out loss", *(f"{of['loss']:.3f}" if "loss" in of else "" for of in models))
    accuracies = [of.get("best_of_n", {}).get("accuracy") for of in models]
    table.add_row("reward model right", *(format_interval(value) for value in accuracies))
    return table


def beside_table(summary: dict[str, Any]) -> Table:
    """Returns how the shares of arms differ in the models beside the family."""
    table = Table(
        title="share, one arm less another, beside the family",
        caption="paired by seed, means [95%]",
    )
    table.add_column("arms")
    for name in summary["beside"]:
        table.add_column(name)
    for pair in dict.fromkeys(pair for of in summary["beside"].values() for pair in of):
        cells = (of.get(pair) for of in summary["beside"].values())
        table.add_row(pair, *map(format_interval, cells))
    return table


def difference_table(summary: dict[str, Any]) -> Table:
    """Returns how curves differ in slope and in height."""
    table = Table(
        title="one arm less another, over the family",
        caption="paired by seed, means [95%]; slopes per factor of ten in parameters",
    )
    titles = {
        "log_odds_slope": "slope of the log-odds",
        "gold_slope": "slope of the gold reward",
        "share": "share, mean over sizes",
    }
    differences = summary.get("differences", {})
    sizes = [name for name, about in summary["models"].items() if "loss" in about]
    table.add_column("arms")
    for title in (*titles.values(), *(f"share at {size}" for size in sizes if differences)):
        table.add_column(title)
    for name, values in differences.items():
        cells = [values[measure] for measure in titles]
        cells += [values["share_by_size"][size] for size in sizes]
        table.add_row(name, *map(format_interval, cells))
    return table
