"""What adapters learn from: a poll's options, persons who are followed, and everybody's answers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.people.adapters.config import Config
from experiments.people.persons import Followed, draw_persons
from experiments.people.polls import Item, Poll, new_questions
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Frozen, Table, hidden_table
from shatter.cli.common.votes import Floats


class Answers(NamedTuple):
    """N rows of answers, each to one question and under the adapter of one owner.

    Attributes:
      owner: int `[N]`, a row of `hierarchy.stacked`: 0 = the population, then groups, then persons.
      question: int `[N]`.
      counts: `[N, K]`, how often each option was chosen; 0 in empty slots.
    """

    owner: Any
    question: Any
    counts: Any


def option_table(
    model: Frozen, poll: Poll, *, max_length: int, file: Path
) -> tuple[Table, np.ndarray]:
    """Computes what adapters on the last mlp_out need of every option, at the option's tokens only.

    No position reads another above that projection, so the prompt's own positions are left out.

    Args:
      model: the frozen model.
      poll: the poll.
      max_length: the largest number of tokens of a prompt and an option.
      file: keeps the hidden states, see `shatter.cli.common.frozen.hidden_table`.

    Returns:
      As `hidden_table`, but `[Q, K, R, ...]`: the last token of the prompt and those of the option;
      and bool `[Q, K]`, false in empty slots.
    """
    numbers: dict[Item, int] = {}
    valid = np.zeros((len(poll.questions), poll.counts.shape[2]), bool)
    places = np.zeros(valid.shape, int)
    for q, question in enumerate(poll.questions):
        for k, option in enumerate(question.options):
            places[q, k] = numbers.setdefault((question.prompt, option), len(numbers))
            valid[q, k] = True
    cut_at = model.config.num_layers  # below the last mlp_out
    texts = hidden_table(model, list(numbers), max_length=max_length, layer=cut_at, file=file)
    lengths = texts["mask"].sum(axis=1)
    steps = np.arange(lengths.max() + 1)
    columns = texts["mask"].argmax(axis=1)[:, None] - 1 + steps
    columns = np.minimum(columns, texts["mask"].shape[1] - 1)
    cut = {name: np.take_along_axis(texts[name], columns, 1) for name in ("tokens", "valid")}
    cut["hidden"] = np.take_along_axis(texts["hidden"], columns[..., None], 1)
    cut["mask"] = (steps > 0) & (steps <= lengths[:, None])
    cut["log_prob"] = texts["log_prob"]
    return {name: values[places] for name, values in cut.items()}, valid


def draw_followed(config: Config, poll: Poll, seed: int) -> Followed:
    """Draws the persons to judge, and half as many others.

    Args:
      config: the config.
      poll: the poll.
      seed: of the division.

    Returns:
      The persons, at least one of each kind.

    Raises:
      UsageError: if fewer than two persons have enough answers.
    """
    rng = np.random.default_rng(seed)
    most = max(config.numbers_of_answers)
    persons = draw_persons(poll, new_questions(poll, rng), most, rng)
    if len(persons) < 2:
        raise UsageError(
            f"--numbers_of_answers: expected two persons with more than {most} answers to old "
            f"questions and one to a new one in division {seed} of {config.dataset}, found "
            f"{len(persons)}: lower the largest number, or raise --max_questions"
        )
    number = min(config.max_persons, 2 * len(persons) // 3)
    return Followed(persons[:number], persons[number : number + max(1, number // 2)])


def without_followed(poll: Poll, followed: Followed, seed: int) -> Poll:
    """Returns the poll from which heads learn what adapters learn, and are judged as they are.

    The counts of old questions are those of single answers of people who are not followed; those of
    new questions are as published.

    Args:
      poll: the poll.
      followed: the persons.
      seed: of the division.

    Returns:
      The poll.
    """
    counts, _ = _counts_of_others(poll, followed)
    counts[:, 0] = counts.sum(axis=1)
    is_new = new_questions(poll, np.random.default_rng(seed))
    return poll._replace(counts=np.where(is_new[:, None, None], poll.counts, counts))


def make_cells(poll: Poll, followed: Followed, answers_per_question: float) -> Answers:
    """Returns the answers of people who are not followed, by group; every question counts alike."""
    counts, answered = _counts_of_others(poll, followed)
    counts *= answers_per_question / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1.0)
    question, group = np.nonzero(answered)  # the same in every division
    return Answers(group, question, counts[question, group].astype(np.float32))


def _counts_of_others(poll: Poll, followed: Followed) -> tuple[Floats, np.ndarray]:
    """Returns counts `[Q, 1 + G, K]` of single answers by group; 0 = no group is known.

    Answers of people who are followed do not count. Also returns bool `[Q, 1 + G]`, where anybody
    answered, also of those who are followed.
    """
    people, question, option = poll.answers.T
    counts = np.zeros_like(poll.counts)
    np.add.at(counts, (question, poll.person_groups[people], option), 1.0)
    answered = counts.sum(axis=2) > 0
    names = [person.name for person in (*followed.judged, *followed.choosing)]
    own = poll.answers[np.isin(people, names)]
    np.add.at(counts, (own[:, 1], poll.person_groups[own[:, 0]], own[:, 2]), -1.0)
    return counts, answered
