"""One division of a poll: a population's adapter, groups' and persons', judged on new questions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.people import hierarchy, measures
from experiments.people.adapted import Answers, Programs
from experiments.people.hierarchy import Levels, Scales
from experiments.people.learners import log_law
from experiments.people.persons import JUDGED_ANSWERS, Person, draw_persons
from experiments.people.polls import Poll, new_questions
from shatter.cli.common.votes import Floats, Ints

HELD = 3  # one in so many of the old questions' units chooses the scales of population and groups


class Search(NamedTuple):
    """How the levels are fitted, and among which scales old answers choose.

    Attributes:
      population_scales: of the population around the frozen model.
      group_ratios: of groups around the population, over the population's scale.
      person_scales: of persons around their groups.
      answers_per_question: as how many all answers to a question count of people who have no
        adapter of their own.
      num_steps: of L-BFGS, for the population and its groups.
      person_steps: the same with persons, who start from what those steps found.
    """

    population_scales: tuple[float, ...]
    group_ratios: tuple[float, ...]
    person_scales: tuple[float, ...]
    answers_per_question: float
    num_steps: int
    person_steps: int


class Division(NamedTuple):
    """What a division has to learn from.

    Attributes:
      poll: the poll.
      programs: the learner.
      search: how it is used.
      is_new: bool `[Q]`, which questions are new.
      cells: answers of N pairs of a question and a group that have some, of people without an
        adapter of their own.
    """

    poll: Poll
    programs: Programs
    search: Search
    is_new: np.ndarray
    cells: Answers


def run_division(
    poll: Poll, programs: Programs, search: Search, numbers: Sequence[int], most: int, seed: int
) -> tuple[dict[str, float], Levels, list[Person]]:
    """Learns and measures.

    Args:
      poll: the poll, with groups.
      programs: the learner on its questions.
      search: how it is used.
      numbers: after how many of a person's answers the next ones are predicted.
      most: the largest number of persons to judge; half as many others choose the persons' scale.
      seed: of the division.

    Returns:
      Numbers by "method/measure"; the levels after the largest number of answers; and the persons
      that they have, in their order.
    """
    rng = np.random.default_rng(seed)
    is_new = new_questions(poll, rng)
    persons = draw_persons(poll, is_new, max(numbers), rng)
    most = min(most, 2 * len(persons) // 3)
    judged, choosing = persons[:most], persons[most : most + max(1, most // 2)]
    followed = [person.name for person in judged + choosing]
    cells = _cells(poll, followed, search.answers_per_question)
    division = Division(poll, programs, search, is_new, cells)
    scales, everybody = _fit_population(division)
    found = {"persons/number": float(most), "scales/population": scales.population}
    found["scales/group"] = scales.group
    last, tried = max(numbers), []
    on_old = [person._replace(new=person.others) for person in choosing]
    for tau in search.person_scales:
        levels = _fit_persons(division, on_old, last, scales._replace(person=tau), everybody)
        tried.append(_person_loss(division, levels, on_old, "persons"))
    scales = scales._replace(person=search.person_scales[int(np.argmin(tried))])
    found["scales/person"] = scales.person
    for number in sorted({0, *numbers}):  # also without answers, so that all have as many steps
        levels = _fit_persons(division, judged, number, scales, everybody)
        found[f"persons/group_loss_{number}"] = _person_loss(division, levels, judged, "groups")
        found[f"persons/log_loss_{number}"] = _person_loss(division, levels, judged, "persons")
        if not number:
            found |= _share_measures(division, levels)
            blind = _person_loss(division, levels, judged, "population")
            found["persons/blind_log_loss_0"] = blind
    return found, levels, judged


def _cells(poll: Poll, followed: Sequence[int], answers_per_question: float) -> Answers:
    """Returns the answers of people who are not followed, by group; every question counts alike."""
    people, question, option = poll.answers.T
    counts = np.zeros_like(poll.counts)
    np.add.at(counts, (question, poll.person_groups[people], option), 1.0)
    question_of, group_of = np.nonzero(counts.sum(axis=2) > 0)  # the same in every division
    own = poll.answers[np.isin(people, followed)]
    np.add.at(counts, (own[:, 1], poll.person_groups[own[:, 0]], own[:, 2]), -1.0)
    counts *= answers_per_question / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1.0)
    return Answers(group_of, question_of, counts[question_of, group_of].astype(np.float32))


def _fit_population(division: Division) -> tuple[Scales, Levels]:
    """Chooses the scales on units that the fit has not seen, then learns all old questions.

    The scale of groups is chosen after the population's, at a middle one.
    """
    poll, search, cells = division.poll, division.search, division.cells
    start = hierarchy.at_anchor(division.programs.anchor, len(poll.groups), 0)
    units = list(
        dict.fromkeys(
            q.unit for q, new in zip(poll.questions, division.is_new, strict=True) if not new
        )
    )
    is_held = np.array([q.unit in units[::HELD] for q in poll.questions])

    def fitted(scales: Scales, learned: np.ndarray) -> Levels:
        counts = np.where(learned[cells.question, None], cells.counts, np.float32(0.0))
        return division.programs.fit(
            cells._replace(counts=counts), np.zeros(0, int), scales, start, search.num_steps
        )

    def held_out(scales: Scales) -> float:
        levels = fitted(scales, ~is_held & ~division.is_new)
        rows = (is_held & ~division.is_new)[cells.question]
        owner, question, counts = (values[rows] for values in cells)
        law = _laws(division, levels, owner, question)
        return -float(np.sum(counts * np.where(counts > 0, law, 0.0)))

    middle = search.group_ratios[len(search.group_ratios) // 2]
    losses = {(s, middle): held_out(Scales(s, middle * s, 1.0)) for s in search.population_scales}
    best, _ = min(losses, key=losses.__getitem__)
    for ratio in search.group_ratios:
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
    return division.programs.fit(rows, groups, scales, start, division.search.person_steps)


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
