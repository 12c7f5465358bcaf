"""What the loss is and what more labels would bring, from the audits of a project."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shatter import evaluation
from shatter.cli.common import run_folder
from shatter.cli.label.answers import Answer
from shatter.cli.label.audits import audit_losses
from shatter.cli.label.folder import proposed
from shatter.cli.label.inputs import OF_POOL
from shatter.cli.label.learn import standing_answers
from shatter.cli.label.measures import claim_measures
from shatter.cli.label.project import Project
from shatter.cli.label.queries import TextQuery, is_audit

HORIZON = 10  # times the labels so far: nothing is forecast beyond
NUM_DRAWS = 2000
COVERAGES = (80, 95)
"""The intervals of an estimate, per cent."""

Estimate = dict[str, float]
"""The `median` of a number and the ends of its intervals: `low80`, `high80`, `low95`, `high95`."""


class NoForecast(Exception):
    """Says why there is no forecast yet, and what it needs."""


class Forecast(NamedTuple):
    """What the audits say. Labels are answers that the members learn from.

    The losses are those of a random pair of the pool, whether it was asked or not, whatever the
    number of responses of the audits, because the share of the claims that is real is taken to be
    the same for every query. Audits themselves are drawn among what was not asked.

    Attributes:
      audits: how many audits have an answer that names one best completion.
      labels: how many labels there are.
      batch: how many labels the next batch has.
      estimates: by what they are about: `real_share`, the share of the members' claims that is
        real; `loss`, the log-loss of a vote now; `next_loss`, after the next batch; `gain`, what
        the next batch is expected to take off; `left`, what further labels can take off in all,
        nats; and the number of further labels to each level asked for, inf = not within `HORIZON`
        times the labels so far.
    """

    audits: int
    labels: int
    batch: int
    estimates: dict[str, Estimate]


def make_forecast(
    project: Project,
    queries: dict[str, TextQuery],
    answers: Sequence[Answer],
    *,
    until: float | None = None,
    until_share_kl: float | None = None,
) -> Forecast:
    """Estimates the loss now and what more labels would bring.

    Args:
      project: the project after it has learned.
      queries: all queries by id.
      answers: the answers that stand.
      until: a log-loss of a vote, nats; the labels to it are estimated.
      until_share_kl: the same for the part of the loss that labels can take away, which is
        KL(people's shares || prediction) but for what this learner can never represent.

    Returns:
      The forecast.

    Raises:
      NoForecast: if too few audits are answered, or nothing is learned yet.
    """
    losses, claims = audit_losses(project, queries, answers)
    if len(losses) < evaluation.LEAST_AUDITS:
        raise NoForecast(
            f"no forecast: {len(losses)} audits have an answer that names one best completion, "
            f"expected {evaluation.LEAST_AUDITS} or more; propose with --audit_share above 0 and "
            "answer"
        )
    rng = np.random.default_rng(project.config.seed)
    curves = _curves(project, evaluation.real_share(losses, claims), rng)
    batch = _next_batch(queries)
    after = evaluation.loss_after(curves, batch)
    draws = {
        "real_share": curves.share,
        "loss": curves.loss,
        "next_loss": after + curves.jitter * rng.standard_normal(NUM_DRAWS),
        "gain": curves.loss - after,
        "left": curves.left,
        **_labels_to_levels(curves, until, until_share_kl),
    }
    estimates = {name: estimate(some) for name, some in draws.items()}
    return Forecast(len(losses), int(curves.labels), batch, estimates)


def _curves(
    project: Project, share: evaluation.Share, rng: np.random.Generator
) -> evaluation.Curves:
    """Returns learning curves that fit the measures of the project's members up to now."""
    labels, times = _times(project)
    return evaluation.learning_curves(
        labels,
        [row[f"{OF_POOL}/coin"] for row in times],
        [row[f"{OF_POOL}/expected"] for row in times],
        times[-1][f"{OF_POOL}/regret"],
        share,
        rng=rng,
        num_draws=NUM_DRAWS,
    )


def _labels_to_levels(
    curves: evaluation.Curves, until: float | None, until_share_kl: float | None
) -> dict[str, np.ndarray]:
    """Returns how many more labels each curve needs to the levels asked for, by their names."""
    levels: dict[str, float | np.ndarray] = {}
    if until is not None:
        levels[f"labels to a log-loss of {until:g}"] = until
    if until_share_kl is not None:
        levels[f"labels to a share_kl of {until_share_kl:g}"] = (
            curves.loss - curves.left + until_share_kl
        )
    more = {name: evaluation.labels_to(curves, level) for name, level in levels.items()}
    return {name: np.where(n > HORIZON * curves.labels, np.inf, n) for name, n in more.items()}


def advice(project: Project, least_gain: float) -> str:
    """Returns whether the next batch is worth its labels, and why.

    Args:
      project: the project after it has learned.
      least_gain: the gain that is asked of a batch, nats.

    Returns:
      A sentence.
    """
    queries, answers = standing_answers(project.folder)
    try:
        found = make_forecast(project, queries, answers)
    except NoForecast as reason:
        return str(reason)
    gain, left = (found.estimates[name] for name in ("gain", "left"))
    interval = f"[{gain['low80']:.4f}, {gain['high80']:.4f}]"
    said = f"the next {found.batch} labels are expected to lower the log-loss by {interval} nats"
    why = f"(80%, by {found.audits} audits after {found.labels} labels)"
    if gain["high80"] >= least_gain:
        return f"{said} {why}"
    all_left = f"[{left['low80']:.4f}, {left['high80']:.4f}]"
    cause = (
        f"because all further labels together would lower it by {all_left}: you may stop here"
        if left["high80"] < least_gain
        else f"because the curve is slow: many more labels would still bring {all_left}"
    )
    return (
        f"{said} {why}, which is less than --least_gain={least_gain:g}, {cause}; the batch is "
        "proposed all the same"
    )


def record_forecast(
    project: Project, *, until: float | None = None, until_share_kl: float | None = None
) -> Forecast:
    """Makes a forecast as `make_forecast` does, and writes it to forecast.json."""
    queries, answers = standing_answers(project.folder)
    found = make_forecast(project, queries, answers, until=until, until_share_kl=until_share_kl)
    run_folder.write_json(project.folder / "forecast.json", found._asdict())
    return found


def estimate(draws: np.ndarray) -> Estimate:
    """Returns the median of some draws and the intervals that hold their middle."""
    ends = {"median": 0.5}
    for coverage in COVERAGES:
        ends[f"low{coverage}"] = 0.5 - coverage / 200
        ends[f"high{coverage}"] = 0.5 + coverage / 200
    # An order statistic, because nothing lies between a number and inf.
    found = np.quantile(draws, list(ends.values()), method="inverted_cdf")
    return dict(zip(ends, map(float, found), strict=True))


def _times(project: Project) -> tuple[list[int], list[Mapping[str, Any]]]:
    """Returns the numbers of labels learned from, ascending from 0, and the measures then."""
    history = project.state.history
    now = history[-1]["answers"] if history else 0
    if not now:
        raise NoForecast("no forecast: nothing is learned yet: answer more queries, and learn")
    start = project._replace(state=project.state._replace(members=project.start))
    found: dict[int, Mapping[str, Any]] = {0: claim_measures(start)}
    for row in history:
        # Rows of older versions lack the claims; taken back answers leave rows with too many.
        if f"{OF_POOL}/coin" in row and 0 < row["answers"] < now:
            found[row["answers"]] = row
    found[now] = claim_measures(project)
    labels = sorted(found)
    return labels, [found[number] for number in labels]


def _next_batch(queries: dict[str, TextQuery]) -> int:
    """Returns how many queries to learn from the newest batch has, and so probably the next."""
    batches = proposed(queries).values()
    newest = max((query.round for query in batches if isinstance(query.round, int)), default=0)
    return max(1, sum(query.round == newest and not is_audit(query) for query in batches))
