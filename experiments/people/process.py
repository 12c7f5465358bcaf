"""One division of a poll: every method learns from the old questions and is judged on the new."""

from typing import Any, NamedTuple

import numpy as np

from experiments.active.features import components
from experiments.people import learners, measures
from experiments.people.config import Config
from experiments.people.inputs import Inputs
from experiments.people.learners import log_law
from experiments.people.polls import Poll, new_questions
from shatter.cli.common.votes import Floats, Ints

JUDGED_ANSWERS = 40  # largest number of a person's answers that are predicted


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


def run_seed(config: Config, poll: Poll, inputs: Inputs, seed: int) -> dict[str, Any]:
    """Learns and measures.

    Args:
      config: the config.
      poll: the poll.
      inputs: what the model and n-grams say of its options.
      seed: of the division.

    Returns:
      measures: numbers by "method/measure". bins: those of `measures.calibration`, by method.
    """
    rng = np.random.default_rng(seed)
    is_new = new_questions(poll, rng)
    question, group = np.nonzero(poll.counts.sum(axis=2) > 0)
    cells = Cells(question, group, poll.counts[question, group], inputs.valid[question])
    old, new = cells.of(~is_new[cells.question]), cells.of(is_new[cells.question])
    in_pool = np.zeros(len(inputs.features), bool)
    in_pool[
        inputs.places[~is_new][
            np.broadcast_to(inputs.valid[~is_new][:, None], inputs.places[~is_new].shape)
        ]
    ] = True
    tables = {
        name: components(table, in_pool, config.num_components)
        for name, table in (("model", inputs.features), ("grams", inputs.grams))
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
    found |= _persons(config, poll, inputs, tables["model"], utilities, is_new, rng)
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


def _persons(
    config: Config,
    poll: Poll,
    inputs: Inputs,
    table: Any,
    utilities: Floats,
    is_new: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Measures the log-loss of persons' answers to new questions after some to old ones."""
    most = max(config.numbers_of_answers)
    of_person: dict[int, list[Any]] = {}
    for person, question, option in poll.answers[rng.permutation(len(poll.answers))]:
        of_person.setdefault(int(person), []).append((int(question), int(option)))
    able: list[int] = []
    for person in sorted(of_person):
        is_old = [not is_new[q] for q, _ in of_person[person]]
        if sum(is_old) > most and not all(is_old):
            able.append(person)
    if not able:
        return {}
    able = [able[n] for n in rng.permutation(len(able))]
    judged, choosing = able[: config.max_persons], able[config.max_persons :]
    choosing = (choosing or judged)[: config.max_persons]
    x = table[inputs.places[:, 0]]
    group = poll.person_groups

    def losses(persons: list[int], number: int, scale: float, on_new: bool) -> float:
        """Returns the mean log-loss, of answers to new questions or to other old ones."""
        known = [[a for a in of_person[p] if not is_new[a[0]]][:most] for p in persons]
        rest = [
            [a for a in of_person[p] if is_new[a[0]]]
            if on_new
            else [a for a in of_person[p] if not is_new[a[0]]][most:]
            for p in persons
        ]
        base = np.array(
            [[utilities[q, group[p]] for q, _ in of] for p, of in zip(persons, known, strict=True)]
        )
        questions = np.array([[q for q, _ in of] for of in known], int).reshape(len(persons), most)
        choices = np.array([[k for _, k in of] for of in known], int).reshape(len(persons), most)
        own = np.zeros((len(persons), x.shape[-1]))
        if number:
            part = slice(0, number)
            own = learners.fit_people(
                x[questions[:, part]],
                base[:, part],
                inputs.valid[questions[:, part]],
                choices[:, part],
                np.ones((len(persons), number), bool),
                scale,
            )
        each = []
        for p, weights, answers in zip(persons, own, rest, strict=True):
            some = np.array(answers[:JUDGED_ANSWERS])
            q, k = some[:, 0], some[:, 1]
            law = log_law(utilities[q, group[p]] + x[q] @ weights, inputs.valid[q])
            each.append(-law[np.arange(len(q)), k].mean())
        return float(np.mean(each))

    found = {"persons/number": float(len(judged))}
    for number in config.numbers_of_answers:
        scale = learners.PERSON_SCALES[0]
        if number:
            scale = min(
                learners.PERSON_SCALES, key=lambda s: losses(choosing, number, s, on_new=False)
            )
            found[f"persons/scale_{number}"] = scale
        found[f"persons/log_loss_{number}"] = losses(judged, number, scale, on_new=True)
    if poll.groups:  # the same without knowing the group
        group = np.zeros_like(group)
        found["persons/blind_log_loss_0"] = losses(judged, 0, 1.0, on_new=True)
    shown = [
        np.log(inputs.valid[[a[0] for a in of_person[p] if is_new[a[0]]]].sum(axis=1)).mean()
        for p in judged
    ]
    found["persons/uniform_log_loss"] = float(np.mean(shown))
    return found
