"""How often the intervals of the forecasts hold, measured on all recorded votes of the pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from scipy.special import log_softmax, logsumexp

from shatter.cli.common import run_folder
from shatter.cli.label.folder import known_queries
from shatter.cli.label.forecasts import COVERAGES, Estimate, NoForecast, record_forecast
from shatter.cli.label.project import Project, utilities
from shatter.cli.label.propose import asked_items

FILE = "rounds.json"
Rounds = list[dict[str, Any]]
"""Of every round the `labels`, the `pool_loss` (NaN where every pair was asked), and the
`estimates` of its forecast or none."""


class Check(NamedTuple):
    """An estimate and what was found later.

    Attributes:
      estimate: the estimate with its intervals.
      truth: what was found.
      is_censored: whether `truth` is only a lower bound.
    """

    estimate: Estimate
    truth: float
    is_censored: bool = False


def pool_loss(project: Project) -> float:
    """Returns the expected log-loss of a random vote on a random pair that was not asked, nats.

    It is what the audits estimate: the pair is one with recorded votes, the vote is drawn in
    proportion to their weights, and votes for neither text do not count. It is NaN if every such
    pair was asked.
    """
    asked = asked_items(project, known_queries(project.folder))
    pairs, votes = [], []
    for items, weights in project.pool.rows.items():
        if len(items) == 2 and items not in asked:
            pairs.append(items)
            wins = [weights.get(ranks, 0.0) for ranks in ((1, 2), (2, 1))]
            votes.append(np.array(wins) / sum(weights.values()))
    if not np.sum(votes):
        return float("nan")
    members = utilities(project, np.arange(len(project.pool.items)))[:, np.array(pairs)]
    mixture = logsumexp(log_softmax(members, axis=-1), axis=0) - np.log(len(members))
    return float(-np.sum(np.array(votes) * mixture) / np.sum(votes))


def note_round(project: Project, until: float | None) -> None:
    """Records the pool's loss and the forecast of the present members, once a round."""
    file = project.folder / FILE
    rounds: Rounds = run_folder.read_json(file, list) if file.exists() else []
    number = project.state.num_updates
    if not number or len(rounds) >= number:
        return
    try:
        estimates = record_forecast(project, until=until).estimates
    except NoForecast:
        estimates = {}
    labels = project.state.history[-1]["answers"]
    rounds.append({"labels": labels, "pool_loss": pool_loss(project), "estimates": estimates})
    run_folder.write_json(file, rounds)


def read_rounds(folder: Path) -> Rounds:
    """Returns what was recorded of a project's rounds; JSON has null for inf and NaN."""
    rounds: Rounds = run_folder.read_json(folder / FILE, list)
    for row in rounds:
        row["pool_loss"] = np.nan if row["pool_loss"] is None else row["pool_loss"]
        row["estimates"] = {
            name: {end: np.inf if value is None else value for end, value in estimate.items()}
            for name, estimate in row["estimates"].items()
        }
    return rounds


def checks_of(seeds: Sequence[Rounds], until: float | None) -> dict[str, list[Check]]:
    """Returns every estimate with what was found later, by what it is about.

    The gain is compared with its mean over the seeds and over the rounds before, then and after,
    because a single one is mostly chance. Nothing is compared with a loss that is NaN.
    """
    found: dict[str, list[Check]] = {}
    losses = np.array([[row["pool_loss"] for row in rounds] for rounds in seeds])
    for rounds, own in zip(seeds, losses, strict=True):
        for number, row in enumerate(rounds):
            estimates = row["estimates"]
            truths = {"loss": Check(estimates.get("loss", {}), own[number])}
            if number + 1 < len(rounds):
                first, last = max(number - 1, 0), min(number + 2, len(rounds) - 1)
                gain = float(np.mean(losses[:, first] - losses[:, last])) / (last - first)
                truths["next_loss"] = Check(estimates.get("next_loss", {}), own[number + 1])
                truths["gain"] = Check(estimates.get("gain", {}), gain)
            name = f"labels to a log-loss of {until or 0:g}"
            if until is not None and own[number] > until:
                later = [r["labels"] for r, loss in zip(rounds, own, strict=True) if loss <= until]
                is_later = [labels for labels in later if labels > row["labels"]]
                reached = (is_later or [rounds[-1]["labels"]])[0]
                truths[name] = Check(estimates.get(name, {}), reached - row["labels"], not is_later)
            for name, check in truths.items():
                is_known = bool(check.estimate) and np.isfinite(check.truth)
                found.setdefault(name, []).extend([check] if is_known else [])
    return found


def is_held(check: Check, coverage: int) -> bool:
    """Returns whether an interval holds the truth, or a truth above its lower bound."""
    low, high = (check.estimate[f"{end}{coverage}"] for end in ("low", "high"))
    return high >= check.truth if check.is_censored else low <= check.truth <= high


def table(checks: dict[str, list[Check]], title: str) -> Table:
    """Returns how often the intervals held, and by medians how far the estimates were off."""
    made = Table(title=title, title_justify="left")
    for name in (
        "",
        "number",
        *(f"{c}% held" for c in COVERAGES),
        "80% width",
        "error",
        "its size",
    ):
        made.add_column(name, justify="right" if name else "left")
    for name, some in checks.items():
        if not some:
            continue
        held = [np.mean([is_held(check, coverage) for check in some]) for coverage in COVERAGES]
        errors = np.array([check.estimate["median"] - check.truth for check in some])
        ends = [np.array([check.estimate[f"{end}80"] for check in some]) for end in ("low", "high")]
        width = np.median(np.where(np.isinf(ends[1]), np.inf, ends[1] - ends[0]))
        form = "{:,.0f}".format if name.startswith("labels") else "{:.4f}".format
        off = [form(np.median(errors)), form(np.median(np.abs(errors)))]
        made.add_row(name, str(len(some)), *(f"{h:.2f}" for h in held), form(width), *off)
    return made
