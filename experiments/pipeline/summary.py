"""What a run says: measures at the end, labels to a level, the fitted curve, what it cost."""

from typing import Any

import numpy as np

from experiments.common.costs import cost
from experiments.common.curves import budgets_to_end, labels_to_end, summarise_fit
from experiments.common.intervals import Interval, mean_interval
from experiments.pipeline.algorithms import ALGORITHMS, BASELINE
from experiments.pipeline.config import Setting

Results = dict[tuple[Setting, str], dict[str, np.ndarray]]
MEASURES = (
    "win_greedy",
    "win_best",
    "win_ceiling",
    "win_rate",
    "kl",
    "log_score",
    "entropy",
    "kl_from_pretrained",
    "readout_kl",
    "readout_win_rate",
    "readout_win_greedy",
    "limit_kl",
    "population_to_limit",
)
COLLAPSED = 0.05  # nats of entropy, below which a policy says one thing
EARLY = (1, 2, 4)  # periods after which differences are reported


def summarise(setting: Setting, name: str, results: Results, labels: np.ndarray) -> dict[str, Any]:
    """Returns one row of the table.

    The reference of the paired differences is the offline pipeline of the same setting, where there
    is one, else the same algorithm in the figure's first setting.

    Args:
      setting: the setting.
      name: the algorithm.
      results: metrics `[S, 1 + R]` of every setting and algorithm.
      labels: `[1 + R]`.

    Returns:
      A JSON-ready row; intervals are of 95% over seeds. "area" is the mean of a measure over the
      ends of periods, "less_reference" a paired difference, "after" the same after a few labels.
      "labels" are those to where the reference ends, seed by seed, in whole periods: a mean in
      which a seed that does not arrive counts with the budget, a lower bound, and the share of such
      seeds; "saving" is read off the mean curves, the budget over the labels with which the mean
      win rate is where the reference's ends, or 1 if that is not above the start. "fall" is how
      far the mean win rate of greedy decoding is at the end below its highest.
    """
    period = setting.config.period
    ends = lambda metrics: {measure: metrics[measure][:, ::period] for measure in MEASURES}
    metrics, labels = ends(results[setting, name]), labels[::period]
    reference = _reference(setting, name, results)
    row: dict[str, Any] = {
        "setting": setting.name,
        "algorithm": name,
        "num_seeds": len(metrics["kl"]),
        "budget": int(labels[-1]),
        "end": {measure: mean_interval(metrics[measure][:, -1]) for measure in MEASURES},
        "area": {m: mean_interval(_area(metrics[m])) for m in ("win_greedy", "win_rate", "kl")},
        "collapsed": float(np.mean(metrics["entropy"][:, -1] < COLLAPSED)),
        "fall": _fall(metrics["win_greedy"]),
        "curve": summarise_fit(metrics["win_greedy"], labels),
        "cost": algorithm_cost(setting, name),
    }
    if reference is None:
        return row
    reference = ends(reference)
    for measure in ("win_greedy", "win_rate", "kl"):
        difference = metrics[measure] - reference[measure]
        parts = {"end": difference[:, -1], "area": _area(difference)}
        for place in EARLY:
            if place < len(labels):
                parts[f"after_{labels[place]}"] = difference[:, place]
        for part, values in parts.items():
            row.setdefault(f"{part}_less_reference", {})[measure] = mean_interval(values)
    for measure in ("win_greedy", "win_rate"):
        row[f"labels_{measure}"] = labels_to_end(metrics[measure], reference[measure], labels)
    row["extrapolated"] = budgets_to_end(metrics["win_greedy"], reference["win_greedy"], labels)
    return row


def algorithm_cost(setting: Setting, name: str) -> dict[str, int]:
    """Returns what an algorithm holds and does in a run of one seed, as `costs.cost`.

    Of a policy that is retrained and that nobody asks in between, only the last training counts.
    """
    config, algorithm = setting.config, ALGORITHMS[name]
    num_candidates = 2 if algorithm.arm == "passive" else config.num_candidates
    is_retrained = algorithm.retrained and algorithm.responses == "learner"
    trainings = config.num_rounds // config.period if is_retrained else 1
    return cost(
        algorithm.kind,
        members=config.num_members,
        particles=config.num_particles if algorithm.arm == "selection" else 0,
        answer_steps=config.num_rounds * config.num_steps,
        policy_steps=trainings * config.num_rounds * config.policy_steps,
        candidates=config.num_rounds * config.queries_per_round * num_candidates,
        step_samples=2 * config.policy_batch,
    )


def _reference(setting: Setting, name: str, results: Results) -> dict[str, np.ndarray] | None:
    if (setting, BASELINE) in results:
        return results[setting, BASELINE]
    first = next(s for s, _ in results)
    return results.get((first, name)) if first != setting else None


def _area(curves: np.ndarray) -> np.ndarray:
    return curves[:, 1:].mean(axis=1)


def _fall(curves: np.ndarray) -> Interval:
    """Returns the mean curve's highest value less its last, with an interval at that round."""
    best = int(curves.mean(axis=0).argmax())
    return {**mean_interval(curves[:, best] - curves[:, -1]), "period": best}
