"""Exact and trained ends side by side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.intervals import Interval, mean_interval
from experiments.iia import exact
from experiments.iia.config import Config
from experiments.iia.objectives import Objective, make_objectives
from experiments.iia.trained import Population
from shatter.types import Key

BETAS = (1.0, 0.5, 0.1)
RANKED = ("ilhf", "dpo", "ipo", "slic")  # reward_model and dpo_choice see ranks as ilhf does


class Case(NamedTuple):
    """A population, a query and a kind of answer."""

    answer: str  # one of `exact.ANSWERS`, or davidson
    size: int
    correlation: float
    share: float

    @property
    def name(self) -> str:
        """The case in words, for tables."""
        correlation = f"correlation={self.correlation:g}"
        return f"{self.answer} K={self.size} {correlation} share={self.share:g}"


Gaps = dict[tuple[Case, str], float]
"""The implied reward gap r1 - r2 of a case and an objective."""
Curves = dict[str, np.ndarray]
"""gap and share `[S, 1 + R]`."""


def chosen_objectives(config: Config) -> dict[str, Objective]:
    """Returns the objectives that the config asks for, all if it names none."""
    every = make_objectives(config)
    return {name: every[name] for name in config.objectives or every}


def shown_objective(config: Config) -> str:
    """Returns the name of the objective that tables and panels of clones show."""
    names = tuple(chosen_objectives(config))
    return "ilhf" if "ilhf" in names else names[0]


def choice_cases(config: Config) -> list[Case]:
    """Returns the cases of choices, which are also trained: the dichotomy, then less correlated."""
    correlations = dict.fromkeys((1.0, *config.correlations))
    return [Case("choice", size, c, config.share) for c in correlations for size in config.sizes]


def answer_cases(config: Config) -> list[Case]:
    """Returns the cases of all kinds of answers, also with the duplicated type in the minority."""
    kinds = ("choice", "ties", "ranking", "davidson")
    shares = dict.fromkeys((config.share, 1 - config.share))
    return [Case(kind, n, 1.0, p) for p in shares for kind in kinds for n in config.sizes]


def exact_gaps(config: Config) -> Gaps:
    """Returns the exact minimum of every case and objective, in double precision.

    Args:
      config: the config.

    Returns:
      The gaps; Davidson's are filed under dpo, which it extends by ties.
    """
    objectives, slots = chosen_objectives(config), max(config.sizes)
    gaps: Gaps = {}
    with jax.enable_x64(True):
        for case in dict.fromkeys(choice_cases(config) + answer_cases(config)):
            if case.answer == "davidson":
                gaps[case, "dpo"] = exact.fit_davidson(case.size, case.share)
                continue
            for name in objectives:
                if case.answer != "choice" and name not in RANKED:
                    continue
                gaps[case, name] = exact.fit_gap(
                    objectives[name], case.answer, case.size, slots, _first_share(case)
                )
    return gaps


def closed_form(case: Case, name: str, config: Config) -> float | None:
    """Returns a gap by its formula, where there is one."""
    if case.answer == "davidson":
        return None
    share = _first_share(case)
    odds = share / (1 - share) * (case.size - 1 if case.answer == "choice" else 1)
    return exact.closed_form(name, case.answer, config.delta, odds)


def inputs(config: Config) -> tuple[Key, Population]:
    """Returns the inputs of the trained runs: all seeds of the first case, then of the next."""
    cases = choice_cases(config)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    repeat = lambda values: jnp.repeat(jnp.asarray(values), config.num_seeds)
    sizes, shares = [case.size for case in cases], [_first_share(case) for case in cases]
    return jnp.tile(keys, len(cases)), Population(repeat(sizes), repeat(shares))


def split_cases(config: Config, metrics: Curves) -> dict[Case, Curves]:
    """Returns the metrics of the trained runs by case."""
    cases = choice_cases(config)
    parts = {name: np.split(values, len(cases)) for name, values in metrics.items()}
    return {case: {k: v[i] for k, v in parts.items()} for i, case in enumerate(cases)}


def summarise(config: Config, gaps: Gaps, curves: dict[tuple[Case, str], Curves]) -> list[dict]:
    """Returns a JSON-ready row for each case and objective.

    Args:
      config: the config.
      gaps: exact.
      curves: trained, for the cases of choices.

    Returns:
      The rows. share_of_policy is type 1's share among as many messages of either type,
      share_in_query that among the messages of one query, both of the policy that the objective
      leads to at the config's beta; wrong is whether the type that fewer want has more reward.
    """
    objectives = make_objectives(config)
    rows = []
    for (case, name), gap in gaps.items():
        beta, clones = objectives[name].beta, case.size - 1
        row = {
            **case._asdict(),
            "objective": name,
            "gap": gap,
            "closed_form": closed_form(case, name, config),
            "share_of_policy": exact.type_share(gap, 1, beta),
            "share_in_query": exact.type_share(gap, clones, beta),
            "wrong": bool(gap * np.log(case.share / (1 - case.share)) < 0),
        }
        if (case, name) in curves:
            row["trained"] = _trained(curves[case, name], clones)
        rows.append(row)
    return rows


def policies(gaps: Gaps, config: Config) -> dict[str, tuple[float | None, dict[int, float]]]:
    """Returns the policies that the dichotomy's choices lead to: beta, and the gap by size.

    The gap of Luce's rule gives the policy of ilhf itself, and the policy of RLHF and DPO at any
    beta.
    """
    by_label: dict[str, tuple[float | None, dict[int, float]]] = {}

    def add(label: str, name: str, beta: float | None) -> None:
        by_size = {
            case.size: gaps[case, name]
            for case in choice_cases(config)
            if case.correlation == 1.0 and (case, name) in gaps
        }
        if by_size:
            by_label[label] = (beta, by_size)

    add("ilhf", "ilhf", None)
    names = chosen_objectives(config)
    luce = next((name for name in ("reward_model", "dpo", "dpo_choice") if name in names), "")
    for name, label in ((luce, "RLHF, DPO"), ("ipo", "IPO")):
        for beta in sorted({*BETAS, config.beta}, reverse=True):
            add(f"{label}, beta {beta:g}", name, beta)
    add("SLiC", "slic", None)
    return by_label


def _first_share(case: Case) -> float:
    """Returns how often the message of type 1 is chosen, or ranked first."""
    return exact.wanted_share(case.share, case.size - 1, case.correlation)


def _trained(curves: Curves, num_clones: int) -> dict[str, Interval]:
    share = curves["share"][:, -1]
    in_query = share / (share + num_clones * (1 - share))
    return {
        "gap": mean_interval(curves["gap"][:, -1]),
        "share_of_policy": mean_interval(share),
        "share_in_query": mean_interval(in_query),
    }
