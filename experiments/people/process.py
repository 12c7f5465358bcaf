"""One division of a poll: every method learns from the old questions and is judged on the new."""

from typing import Any, NamedTuple

import numpy as np

from experiments.common.features import components
from experiments.people import learners, measures
from experiments.people.config import Config
from experiments.people.inputs import Inputs, gram_components
from experiments.people.learners import log_law
from experiments.people.persons import Followed, Options, draw_followed, person_losses
from experiments.people.polls import Poll, new_questions
from shatter.cli.common.votes import Floats, Ints


class Cells(NamedTuple):
    """Answers to N pairs of a question and a group (0 = everybody) that has answers to it.

    Attributes:
      question: int `[N]`.
      group: int `[N]`.
      counts: `[N, K]`.
      valid: bool `[N, K]`.
    """

    question: Ints
    group: Ints
    counts: Floats
    valid: np.ndarray

    @property
    def shares(self) -> Floats:
        """`[N, K]`, each row summing to 1."""
        return self.counts / self.counts.sum(axis=1, keepdims=True)

    def of(self, rows: np.ndarray) -> "Cells":
        """Returns some of the cells."""
        return Cells(*(values[rows] for values in self))


def run_seed(
    config: Config, poll: Poll, inputs: Inputs, seed: int, followed: Followed | None = None
) -> dict[str, Any]:
    """Learns and measures.

    Args:
      config: the config.
      poll: the poll.
      inputs: what the model and n-grams say of its options.
      seed: of the division.
      followed: the persons to judge and to choose by; None = they are drawn.

    Returns:
      measures: numbers by "method/measure". bins: those of `measures.calibration`, by method.
    """
    rng = np.random.default_rng(seed)
    is_new = new_questions(poll, rng)
    question, group = np.nonzero(poll.counts.sum(axis=2) > 0)
    cells = Cells(question, group, poll.counts[question, group], inputs.valid[question])
    old, new = cells.of(~is_new[cells.question]), cells.of(is_new[cells.question])
    places = inputs.places[~is_new]
    is_there = np.broadcast_to(inputs.valid[~is_new][:, None], places.shape)
    in_pool = np.isin(np.arange(len(inputs.features)), places[is_there])
    tables = {
        "model": components(inputs.features, in_pool, config.num_components),
        "grams": gram_components(inputs.grams, in_pool, config.num_gram_components),
    }
    laws, utilities = _laws(config, poll, inputs, tables, old, new)
    found: dict[str, float] = {}
    bins: dict[str, Any] = {}
    everybody, of_groups = new.group == 0, new.group > 0
    for method, law in laws.items():
        kl = measures.share_kl(law, new.counts)
        found[f"{method}/kl"] = float(kl[everybody].mean())
        bins[method] = measures.calibration(
            law[everybody], new.counts[everybody], new.valid[everybody]
        )
        found[f"{method}/calibration_error"] = measures.calibration_error(bins[method])
        if of_groups.any():
            found[f"{method}/group_kl"] = float(kl[of_groups].mean())
    best = "group_prompt" if "group_prompt" in laws else "group_difference"
    best = best if best in laws else "head"
    for name, rows, method in (("kl", everybody, "head"), ("group_kl", of_groups, best)):
        if rows.any():
            floor = measures.noise_floor(laws[method][rows], new.counts[rows], rng)
            found[f"floor/{name}"] = floor
    options = Options(tables["model"][inputs.places[:, 0]], utilities, inputs.valid)
    if followed is None:
        followed = draw_followed(config, poll, is_new, rng)
    found |= person_losses(config, poll, options, followed)
    return {"measures": found, "bins": bins}


def _laws(
    config: Config, poll: Poll, inputs: Inputs, tables: dict[str, Any], old: Cells, new: Cells
) -> tuple[dict[str, Floats], Floats]:
    """Fits every method.

    Returns:
      The laws `[N, K]` of the new cells by method, and utilities `[Q, 1 + G, K]` of the head, of
      everybody and of groups, nats.
    """
    plain = inputs.places[:, 0]
    everybody = old.of(old.group == 0)
    units = lambda cells: [poll.questions[q].unit for q in cells.question]
    prompted = inputs.log_probs[inputs.places]
    laws = {
        "uniform": measures.uniform(new.valid),
        "prompted": log_law(prompted[new.question, new.group], new.valid),
    }

    def fitted(features: Any, cells: Cells, shares: Any, judged: Any) -> tuple[Floats, Any, float]:
        scale = learners.choose_scale(
            features, shares, cells.valid, units(cells), learners.PRIOR_SCALES
        )
        weights = learners.fit_head(features, shares, cells.valid, scale)
        return log_law(judged @ weights, new.valid), weights, scale

    spread = prompted[everybody.question, 0][everybody.valid].std() + 1e-9
    one = prompted[..., None] / spread
    laws["prompted_scaled"], *_ = fitted(
        one[old.question, old.group], old, old.shares, one[new.question, new.group]
    )
    for name, method in (("grams", "ngrams"), ("model", "head")):
        x = tables[name][plain]
        laws[method], weights, scale = fitted(
            x[everybody.question], everybody, everybody.shares, x[new.question]
        )
    majority = (np.arange(x.shape[1]) == everybody.counts.argmax(axis=1)[:, None]).astype(float)
    laws["majority"], *_ = fitted(x[everybody.question], everybody, majority, x[new.question])
    utilities = np.repeat((x @ weights)[:, None], 1 + len(poll.groups), axis=1)
    # The policy of DPO, whose implicit reward is the head: p0 exp(u / beta) / Z.
    laws["dpo"] = log_law(
        prompted[new.question, 0] + utilities[new.question, 0] / config.beta, new.valid
    )
    if poll.groups:
        differing = lambda cells, factor: learners.by_group(
            x[cells.question], cells.group, len(poll.groups), factor
        )
        factor = min(
            learners.GROUP_SCALES,
            key=lambda f: _held_out_loss(differing(old, f), old, units(old), scale),
        )
        own = learners.fit_head(differing(old, factor), old.shares, old.valid, scale)
        laws["group_difference"] = log_law(differing(new, factor) @ own, new.valid)
        every = np.indices(inputs.places.shape[:2]).reshape(2, -1)
        cells = Cells(every[0], every[1], old.counts[:0], old.valid[:0])
        utilities = (differing(cells, factor) @ own).reshape(inputs.places.shape)
        if not np.array_equal(inputs.places[:, 0], inputs.places[:, 1]):
            told = tables["model"][inputs.places]
            laws["group_prompt"], *_ = fitted(
                told[old.question, old.group], old, old.shares, told[new.question, new.group]
            )
    return laws, utilities


def _held_out_loss(features: Any, cells: Cells, units: list[str], scale: float) -> float:
    """Returns the loss on a third of the units of a head that is fitted to the others."""
    names = list(dict.fromkeys(units))
    held = np.array([names.index(unit) % 3 == 0 for unit in units])
    if held.all():
        return 0.0
    fit = cells.of(~held)
    weights = learners.fit_head(features[~held], fit.shares, fit.valid, scale)
    rest = cells.of(held)
    law = log_law(features[held] @ weights, rest.valid)
    return float(measures.share_kl(law, rest.counts).mean())
