"""How well a person's answers to new questions are predicted after a few to old ones."""

from typing import Any, NamedTuple

import numpy as np

from experiments.people import learners
from experiments.people.config import Config
from experiments.people.learners import log_law
from experiments.people.polls import Poll
from shatter.cli.common.votes import Floats, Ints

JUDGED_ANSWERS = 40  # largest number of a person's answers that are predicted


class Person(NamedTuple):
    """A person's answers, in a random order; each is a row of a question and an option.

    Attributes:
      name: the person's number in the poll.
      group: the person's group; 0 = none is known.
      known: int `[A, 2]`, answers to old questions from which the person may be learned.
      others: int `[B, 2]`, other answers to old questions.
      new: int `[C, 2]`, answers to new questions.
    """

    name: int
    group: int
    known: Ints
    others: Ints
    new: Ints


class Followed(NamedTuple):
    """Persons who are learned one by one.

    Attributes:
      judged: those whose answers to new questions are predicted.
      choosing: those whose other answers to old questions choose how far a person may differ.
    """

    judged: list[Person]
    choosing: list[Person]


class Options(NamedTuple):
    """What persons choose among.

    Attributes:
      features: `[Q, K, P]`.
      utilities: `[Q, 1 + G, K]`, of everybody and of each group, nats.
      valid: bool `[Q, K]`, false in empty slots.
    """

    features: Any
    utilities: Floats
    valid: np.ndarray


def person_losses(
    config: Config, poll: Poll, options: Options, followed: Followed
) -> dict[str, float]:
    """Measures the log-loss of persons' answers to new questions after some to old ones.

    Args:
      config: the config.
      poll: the poll.
      options: the options.
      followed: the persons.

    Returns:
      Measures by name; nothing if there is nobody to judge.
    """
    judged, choosing = followed
    if not judged:
        return {}
    found = {"persons/number": float(len(judged))}
    for number in dict.fromkeys((0, *config.numbers_of_answers)):  # gains are over 0
        scale = 1.0
        if number:
            on_others = [person._replace(new=person.others) for person in choosing]
            loss = lambda s, of=on_others, n=number: mean_loss(options, of, n, s)
            scale = found[f"persons/scale_{number}"] = min(learners.PERSON_SCALES, key=loss)
        found[f"persons/log_loss_{number}"] = mean_loss(options, judged, number, scale)
    if poll.groups:
        blind = [person._replace(group=0) for person in judged]
        found["persons/blind_log_loss_0"] = mean_loss(options, blind, 0, 1.0)
    uniform = options._replace(utilities=np.zeros_like(options.utilities))
    found["persons/uniform_log_loss"] = mean_loss(uniform, judged, 0, 1.0)
    return found


def mean_loss(options: Options, persons: list[Person], number: int, scale: float) -> float:
    """Returns the mean over persons of the log-loss of their new answers, nats.

    Args:
      options: the options.
      persons: R persons.
      number: how many of their known answers they are learned from.
      scale: of a person's difference from the group.
    """
    differences = np.zeros((len(persons), options.features.shape[-1]))
    if number:
        known = np.stack([person.known[:number] for person in persons])
        questions, choices = known[..., 0], known[..., 1]
        groups = np.array([person.group for person in persons])[:, None]
        differences = learners.fit_people(
            options.features[questions],
            options.utilities[questions, groups],
            options.valid[questions],
            choices,
            np.ones(choices.shape, bool),
            scale,
        )
    losses = []
    for person, difference in zip(persons, differences, strict=True):
        q, k = person.new[:JUDGED_ANSWERS].T
        own = options.utilities[q, person.group] + options.features[q] @ difference
        losses.append(-log_law(own, options.valid[q])[np.arange(len(q)), k].mean())
    return float(np.mean(losses))


def draw_followed(
    config: Config, poll: Poll, is_new: np.ndarray, rng: np.random.Generator
) -> Followed:
    """Draws the persons to judge and as many others, or the same where there are no others.

    Args:
      config: the config.
      poll: the poll.
      is_new: bool `[Q]`, which questions are new.
      rng: draws the persons and the order of their answers.

    Returns:
      The persons; nobody if nobody has enough answers.
    """
    persons = draw_persons(poll, is_new, max(config.numbers_of_answers), rng)
    judged, others = persons[: config.max_persons], persons[config.max_persons :]
    return Followed(judged, (others or judged)[: config.max_persons])


def draw_persons(
    poll: Poll, is_new: np.ndarray, most: int, rng: np.random.Generator
) -> list[Person]:
    """Draws the persons with enough answers, in a random order.

    Args:
      poll: the poll.
      is_new: bool `[Q]`, which questions are new.
      most: the number of known answers; a person needs more to old questions, and one to a new one.
      rng: draws the order of the persons and of their answers.

    Returns:
      The persons.
    """
    answers = poll.answers[rng.permutation(len(poll.answers))]
    of_person: dict[int, list[Any]] = {}
    for person, *answer in answers.tolist():
        of_person.setdefault(person, []).append(answer)
    persons = []
    for name in sorted(of_person):
        given = np.array(of_person[name])
        old, new = given[~is_new[given[:, 0]]], given[is_new[given[:, 0]]]
        if len(old) > most and len(new):
            persons.append(Person(name, int(poll.person_groups[name]), old[:most], old[most:], new))
    return [persons[n] for n in rng.permutation(len(persons))]
