"""What a run says: measures at the end, labels to a level, the fitted curve, what it cost."""

from typing import Any

import numpy as np

from experiments.common.intervals import Interval, curve_saving, mean_interval
from experiments.pipeline.algorithms import ALGORITHMS, BASELINE
from experiments.pipeline.config import Setting
from experiments.pipeline.curves import fit_curve, labels_at, win_rate_at
from shatter.evaluation import bootstrap_interval, queries_to_level

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
SAME = 1e-4  # win rates that are this near are the same
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
        "curve": _fitted(metrics["win_greedy"], labels),
        "cost": cost(setting, name),
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
        row[f"labels_{measure}"] = _arrivals(metrics[measure], reference[measure], labels)
    row["extrapolated"] = _extrapolated(metrics["win_greedy"], reference["win_greedy"], labels)
    return row


def cost(setting: Setting, name: str) -> dict[str, int]:
    """Returns what an algorithm holds and does in a run of one seed.

    Args:
      setting: the setting.
      name: the algorithm.

    Returns:
      "models": language models in memory, pretrained and moving averages among them; "heads": of
      the reward model; "answer_steps": gradient steps on answers, of all members and heads
      together; "policy_steps": those on samples; "samples": documents drawn from a model,
      candidates among them.
    """
    config, algorithm = setting.config, ALGORITHMS[name]
    num_candidates = 2 if algorithm.arm == "passive" else config.num_candidates
    asked = config.num_rounds * config.queries_per_round * num_candidates
    learned = config.num_rounds * config.num_steps
    if algorithm.kind != "pipeline":
        members = config.num_members if algorithm.kind == "ilhf" else 1
        models = members + 1  # the pretrained model, as the centre of the prior or the reference
        return _cost(models, 0, learned * members, 0, asked)
    heads = 1 + (config.num_particles if algorithm.arm == "selection" else 0)
    policy_steps = config.num_rounds * config.policy_steps
    if algorithm.retrained:
        # Only the last training counts where nobody asks the policy in between.
        is_asked = algorithm.responses == "learner"
        policy_steps *= config.num_rounds // config.period if is_asked else 1
    samples = asked + policy_steps * 2 * config.policy_batch
    return _cost(3, heads, learned * heads, policy_steps, samples)


def _cost(models: int, heads: int, answers: int, policy: int, samples: int) -> dict[str, int]:
    return {
        "models": models,
        "heads": heads,
        "answer_steps": answers,
        "policy_steps": policy,
        "samples": samples,
    }


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


def _fitted(curves: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the fit to the mean curve, and, an extrapolation, its win rate at ten budgets."""
    fit = lambda seeds: fit_curve(labels[1:], curves[seeds.astype(int), 1:].mean(axis=0))
    later = lambda seeds: float(win_rate_at(fit(seeds), 10.0 * labels[-1]))
    return {
        "a": fit(np.arange(len(curves))).a,
        "b": _interval(lambda seeds: fit(seeds).b, len(curves)),
        "at_ten_budgets": _interval(later, len(curves)),
    }


def _arrivals(curves: np.ndarray, others: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    asked, censored = queries_to_level(-curves, labels, SAME - others[:, -1])
    return {
        "mean": mean_interval(asked),
        "median": float(np.median(asked)),
        "never": float(np.mean(censored)),
        "saving": curve_saving(-curves, -others, labels, same=SAME),
    }


def _extrapolated(curves: np.ndarray, others: np.ndarray, labels: np.ndarray) -> Interval:
    """Returns how many times the budget the reference would need, by the fit of its curve.

    An extrapolation where it is above 1: to where this algorithm's mean win rate ends.
    """

    def times(seeds: np.ndarray) -> float:
        rows = seeds.astype(int)
        curve = fit_curve(labels[1:], others[rows, 1:].mean(axis=0))
        return min(labels_at(curve, float(curves[rows, -1].mean())) / float(labels[-1]), 1e6)

    return _interval(times, len(curves))


def _interval(statistic: Any, num_seeds: int) -> Interval:
    seeds = np.arange(num_seeds)
    low, high = bootstrap_interval(
        statistic, seeds, rng=np.random.default_rng(0), num_resamples=1000
    )
    return {"mean": float(statistic(seeds)), "low": low, "high": high}
