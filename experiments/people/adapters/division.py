"""One division of a poll: a population's adapter, groups' and persons', judged on new questions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.people import measures
from experiments.people.adapters import hierarchy
from experiments.people.adapters.config import Config
from experiments.people.adapters.hierarchy import Levels, Scales
from experiments.people.adapters.inputs import Answers, make_cells
from experiments.people.adapters.programs import Programs
from experiments.people.learners import log_law
from experiments.people.persons import JUDGED_ANSWERS, Followed, Person
from experiments.people.polls import Poll, new_questions
from shatter.cli.common.votes import Floats, Ints

HELD = 3  # one in so many of the old questions' units chooses the scales of population and groups


class Division(NamedTuple):
    """What a division has to learn from.

    Attributes:
      config: the config.
      poll: the poll.
      programs: the learner on its questions.
      is_new: bool `[Q]`, which questions are new.
      cells: answers of N pairs of a question and a group that have some, of people who are not
        followed.
    """

    config: Config
    poll: Poll
    programs: Programs
    is_new: np.ndarray
    cells: Answers


def run_division(
    config: Config, poll: Poll, programs: Programs, followed: Followed, seed: int
) -> tuple[dict[str, float], Levels]:
    """Learns and measures.

    Args:
      config: the config.
      poll: the poll, with groups.
      programs: the learner on its questions.
      followed: of `inputs.draw_followed`.
      seed: of the division.

    Returns:
      Numbers by "method/measure", and the levels after the largest number of answers, whose persons
      are those who are judged.
    """
    is_new = new_questions(poll, np.random.default_rng(seed))
    cells = make_cells(poll, followed, config.answers_per_question)
    division = Division(config, poll, programs, is_new, cells)
    judged = followed.judged
    scales, everybody = _fit_population(division)
    found = {"persons/number": float(len(judged)), "scales/population": scales.population}
    found["scales/group"] = scales.group
    on_old = [person._replace(new=person.others) for person in followed.choosing]

    def old_loss(tau: float, number: int) -> float:
        levels = _fit_persons(division, on_old, number, scales._replace(person=tau), everybody)
        return _person_loss(division, levels, on_old, "persons")

    for number in sorted({0, *config.numbers_of_answers}):  # 0 too: all have as many steps
        if number:
            tried = [old_loss(tau, number) for tau in config.person_scales]
            tau = config.person_scales[int(np.argmin(tried))]
            scales = scales._replace(person=tau)
            found[f"scales/person_{number}"] = tau
        levels = _fit_persons(division, judged, number, scales, everybody)
        found[f"persons/group_loss_{number}"] = _person_loss(division, levels, judged, "groups")
        found[f"persons/log_loss_{number}"] = _person_loss(division, levels, judged, "persons")
        if not number:
            found |= _share_measures(division, levels)
            blind = _person_loss(division, levels, judged, "population")
            found["persons/blind_log_loss_0"] = blind
    return found, levels


def _fit_population(division: Division) -> tuple[Scales, Levels]:
    """Chooses the scales on units that the fit has not seen, then learns all old questions.

    The scale of groups is chosen after the population's, at a middle one.
    """
    poll, config, cells = division.poll, division.config, division.cells
    start = hierarchy.at_anchor(division.programs.anchor, len(poll.groups))
    units = list(
        dict.fromkeys(
            q.unit for q, new in zip(poll.questions, division.is_new, strict=True) if not new
        )
    )
    is_held = np.array([q.unit in units[::HELD] for q in poll.questions])

    def fitted(scales: Scales, learned: np.ndarray) -> Levels:
        counts = np.where(learned[cells.question, None], cells.counts, np.float32(0.0))
        return division.programs.fit(
            cells._replace(counts=counts), np.zeros(0, int), scales, start, config.num_steps
        )

    def held_out(scales: Scales) -> float:
        levels = fitted(scales, ~is_held & ~division.is_new)
        rows = (is_held & ~division.is_new)[cells.question]
        owner, question, counts = (values[rows] for values in cells)
        law = _laws(division, levels, owner, question)
        return -float(np.sum(counts * np.where(counts > 0, law, 0.0)))

    middle = config.group_ratios[len(config.group_ratios) // 2]
    losses = {(s, middle): held_out(Scales(s, middle * s, 1.0)) for s in config.population_scales}
    best, _ = min(losses, key=losses.__getitem__)
    for ratio in config.group_ratios:
        if ratio != middle:
            losses[best, ratio] = held_out(Scales(best, ratio * best, 1.0))
    best, ratio = min(losses, key=losses.__getitem__)
    scales = Scales(best, ratio * best, 1.0)
    return scales, fitted(scales, ~division.is_new)


def _fit_persons(
    division: Division, persons: Sequence[Person], number: int, scales: Scales, start: Levels
) -> Levels:
    """Learns everything jointly from all old answers of others and the first ones of persons."""
    first = 1 + len(division.poll.groups)
    known = np.concatenate([person.known[:number] for person in persons]).astype(int)
    owner = first + np.repeat(np.arange(len(persons)), number)
    counts = np.eye(division.poll.counts.shape[2], dtype=np.float32)[known[:, 1]]
    cells = division.cells
    others = np.where(division.is_new[cells.question, None], np.float32(0.0), cells.counts)
    rows = Answers(
        np.concatenate([cells.owner, owner]),
        np.concatenate([cells.question, known[:, 0]]),
        np.concatenate([others, counts]),
    )
    groups = np.array([person.group for person in persons])
    return division.programs.fit(rows, groups, scales, start, division.config.person_steps)


def _laws(division: Division, levels: Levels, owner: Ints, question: Ints) -> Floats:
    """Returns the log-probs `[N, K]` of the options of questions under their owners' adapters."""
    own = hierarchy.stacked(levels)
    utilities = division.programs.utilities(own, owner, question)
    return log_law(utilities, division.programs.valid[question])


def _person_loss(
    division: Division, levels: Levels, persons: Sequence[Person], level: str
) -> float:
    """Returns the mean over persons of the log-loss of their new answers, nats.

    Args:
      division: the division.
      levels: has adapters of these persons if `level` is "persons".
      persons: the persons.
      level: whose adapters predict: "persons", "groups" (the population's where a person has no
        group) or "population".
    """
    new = [person.new[:JUDGED_ANSWERS] for person in persons]
    owners = {
        "persons": 1 + len(division.poll.groups) + np.arange(len(persons)),
        "groups": np.array([person.group for person in persons]),
        "population": np.zeros(len(persons), int),
    }
    number = np.array([len(answers) for answers in new])
    question, option = np.concatenate(new).T
    law = _laws(division, levels, np.repeat(owners[level], number), question)
    losses = -np.take_along_axis(law, option[:, None], axis=1)[:, 0]
    return float(np.mean([part.mean() for part in np.split(losses, np.cumsum(number)[:-1])]))


def _share_measures(division: Division, levels: Levels) -> dict[str, Any]:
    """Returns the KLs from published shares: everybody's and groups', on new questions."""
    counts, is_new = division.poll.counts, division.is_new
    question, group = np.nonzero((counts.sum(axis=2) > 0) & is_new[:, None])
    kl = lambda owner: measures.share_kl(
        _laws(division, levels, owner, question), counts[question, group]
    )
    own, blind = kl(group), kl(np.zeros_like(group))
    everybody = group == 0
    return {
        "adapters/kl": float(blind[everybody].mean()),
        "adapters/group_kl": float(own[~everybody].mean()),
        "adapters/blind_group_kl": float(blind[~everybody].mean()),
    }
