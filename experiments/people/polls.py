"""Polls: what everybody, groups and single persons answered to questions."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import sources
from experiments.common.shares import load_shares
from experiments.common.texts import json_lines, load_arguments, load_statements
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.votes import Floats, Ints

NEW = 0.2  # of the questions
Item = tuple[str, str]
"""A prompt and a completion."""


class Question(NamedTuple):
    """A question with its K options.

    Attributes:
      prompt: the text before the options.
      options: the options, as completions of the prompt.
      unit: what it shares with other questions, a battery or a topic; units are new as a whole.
    """

    prompt: str
    options: tuple[str, ...]
    unit: str


class Poll(NamedTuple):
    """What people answered.

    Attributes:
      questions: Q questions.
      groups: the names of G groups, in words that a prompt may say; () = none are known.
      counts: `[Q, 1 + G, K]`, how many of everybody and of each group chose each option; 0 in empty
        slots, and where nobody of a group was asked.
      answers: int `[A, 3]`: the person, the question and the option of single answers.
      person_groups: int `[P]`, the group of each person, from 1; 0 = none is known.
    """

    questions: list[Question]
    groups: tuple[str, ...]
    counts: Floats
    answers: Ints
    person_groups: Ints


def load_poll(name: str, *, data_dir: str | Path | None = None) -> Poll:
    """Reads a poll.

    `survey_opinions`: 40 questions of a survey of non-voters, with the weighted shares of everybody
    and of each party, and the answers of its respondents. A battery of questions is a unit.

    `polis`: whether people agree with a citizen's statement; who passed does not count. The groups
    are those that Polis made of the votes, a few in each conversation.

    `ukp_convarg`: which of two arguments for the same side of a debate is more convincing; "equal"
    does not count. A side is a unit.

    `pandalm`: which of two answers of models to a prompt is better, by three persons; a tie does
    not count. A prompt is a unit.

    Args:
      name: one of `POLLS`.
      data_dir: the data folder; None or empty = the one that SHATTER_DATA_DIR names.

    Returns:
      The poll.

    Raises:
      UsageError: if the name is unknown, or a file is missing or not as published.
    """
    binary.choose("data set", (name,), POLLS)
    try:
        return _LOADERS[name](data_dir)
    except sources.SourceError as error:
        raise UsageError(str(error)) from error


def new_questions(poll: Poll, rng: np.random.Generator) -> np.ndarray:
    """Draws units until they have a fifth of the questions.

    Args:
      poll: the poll.
      rng: draws the units.

    Returns:
      bool `[Q]`, whether a question is new.
    """
    units = list(dict.fromkeys(question.unit for question in poll.questions))
    new: set[str] = set()
    is_new = np.zeros(len(poll.questions), bool)
    for number in rng.permutation(len(units)):
        if is_new.mean() >= NEW:
            break
        new.add(units[number])
        is_new = np.array([question.unit in new for question in poll.questions])
    return is_new


def draw_questions(poll: Poll, number: int, rng: np.random.Generator) -> Poll:
    """Returns a poll with at most so many of the questions, drawn at random, in their order.

    Args:
      poll: the poll.
      number: of questions.
      rng: draws them.

    Returns:
      The poll.
    """
    kept = np.sort(rng.permutation(len(poll.questions))[:number])
    places = np.full(len(poll.questions), -1)
    places[kept] = np.arange(len(kept))
    answers = poll.answers[places[poll.answers[:, 1]] >= 0]
    answers = np.stack([answers[:, 0], places[answers[:, 1]], answers[:, 2]], axis=1)
    return poll._replace(
        questions=[poll.questions[n] for n in kept], counts=poll.counts[kept], answers=answers
    )


def _survey(data_dir: str | Path | None) -> Poll:
    shares = load_shares(sources.locate("shares", data_dir))
    lines = [line for line in shares if line.id.startswith("nonvoters:")]
    parties = [line.group for line in lines if line.group and line.group.attribute == "party"]
    values = tuple(dict.fromkeys(party.value for party in parties))
    numbers = {line.id: n for n, line in enumerate(x for x in lines if x.group is None)}
    questions: list[Any] = [None] * len(numbers)
    counts = np.zeros((len(numbers), 1 + len(values), max(len(x.completions) for x in lines)))
    for line in lines:
        number = numbers[line.id]
        if line.group is None:
            unit = line.id.split("_")[0]
            options = tuple(f" {option}" for option in line.completions)
            questions[number] = Question(f"{line.prompt}\nAnswer:", options, unit)
        elif line.group.attribute != "party":
            continue
        row = 0 if line.group is None else 1 + values.index(line.group.value)
        counts[number, row, : len(line.shares)] = line.n_eff * line.shares
    path = sources.locate("nonvoters_respondents", data_dir)
    answers, person_groups = [], []
    with path.open(newline="", encoding="utf-8") as file:
        for person, record in enumerate(csv.DictReader(file)):
            party = record["party"]
            person_groups.append(1 + values.index(party) if party in values else 0)
            answers += [
                (person, number, int(record[name.split(":")[1]]))
                for name, number in numbers.items()
                if record[name.split(":")[1]] not in ("", None)
            ]
    groups = tuple(f"party: {value}" for value in values)
    return Poll(questions, groups, counts, np.array(answers), np.array(person_groups))


def _polis(data_dir: str | Path | None) -> Poll:
    topics, prompts = load_statements(data_dir)
    lines = json_lines(sources.locate("polis_shares", data_dir))
    groups: dict[tuple[str, str], int] = {}
    numbers: dict[tuple[str, int], int] = {}
    for line in lines:
        if line["group"] == "all":
            numbers[line["conversation"], line["id"]] = len(numbers)
        else:
            groups.setdefault((line["conversation"], line["group"]), 1 + len(groups))
    counts = np.zeros((len(numbers), 1 + len(groups), 2))
    for line in lines:
        row = 0 if line["group"] == "all" else groups[line["conversation"], line["group"]]
        number = numbers.get((line["conversation"], line["id"]))
        if number is not None:
            counts[number, row] = line["n"] * np.array(line["distribution"][:2])
    questions = [
        Question(prompts[name, n], (" agree", " disagree"), f"{name} {n}") for name, n in numbers
    ]
    answers, person_groups = [], []
    path = sources.locate("polis_votes", data_dir)
    with path.open(newline="", encoding="utf-8") as file:
        for person, record in enumerate(csv.DictReader(file)):
            name = record["conversation"]
            person_groups.append(groups.get((name, record["group"]), 0))
            for vote in record["votes"].split():
                number = numbers.get((name, int(vote[:-1])))
                if number is not None and vote[-1] in "+-":
                    answers.append((person, number, "+-".index(vote[-1])))
    names = tuple(f"{topics[name]}, opinion group {group}" for name, group in groups)
    return Poll(questions, names, counts, np.array(answers), np.array(person_groups))


def _convarg(data_dir: str | Path | None) -> Poll:
    prompts, texts = load_arguments(data_dir)
    records = (
        (
            prompts[record["topic"]],
            (texts[record["a"]], texts[record["b"]]),
            record["topic"],
            [
                (worker, "AB".index(answer))
                for worker, answer in zip(record["workers"], record["answers"], strict=True)
                if answer in "AB"
            ],
        )
        for record in json_lines(sources.locate("ukp_convarg_pairs", data_dir))
    )
    return _pairs(records)


def _pandalm(data_dir: str | Path | None) -> Poll:
    records = (
        (
            f"{record['prompt']}\nAnswer:",
            tuple(f" {str(text).strip()}" for text in record["completions"]),
            record["prompt"],
            [(n, answer - 1) for n, answer in enumerate(record["answers"]) if answer],
        )
        for record in json_lines(sources.locate("pandalm", data_dir))
    )
    return _pairs(records)


def _pairs(records: Iterable[tuple[str, tuple[str, ...], str, list[tuple[int, int]]]]) -> Poll:
    """Makes a poll of answers to pairs; pairs of one text, or that nobody decided, are left out."""
    questions: list[Question] = []
    people: dict[int, int] = {}
    answers: list[tuple[int, int, int]] = []
    for prompt, options, unit, given in records:
        if len(set(options)) == 2 and given:
            answers += [
                (people.setdefault(name, len(people)), len(questions), option)
                for name, option in given
            ]
            questions.append(Question(prompt, options, unit))
    table = np.array(answers)
    counts = np.zeros((len(questions), 1, 2))
    np.add.at(counts[:, 0], (table[:, 1], table[:, 2]), 1.0)
    return Poll(questions, (), counts, table, np.zeros(len(people), int))


_LOADERS: dict[str, Callable[[str | Path | None], Poll]] = {
    "survey_opinions": _survey,
    "polis": _polis,
    "ukp_convarg": _convarg,
    "pandalm": _pandalm,
}
POLLS = tuple(_LOADERS)
