"""Measures of held-out answers by group and by person, and against soft labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from shatter import data, evaluation
from shatter.cli.common import votes
from shatter.cli.common.votes import Floats
from shatter.data.layouts import text_key

FEWEST_ANSWERS = 2  # that make shares
LEAST_GROUP = 5  # people, of a group that is named where nobody says otherwise


class Person(NamedTuple):
    """How well a person's held-out answers are predicted; a row of people_*.csv.

    Attributes:
      annotator: the person's name.
      group: the person's group, if the rows name one and no other.
      answers: the number of answers, ties not counted.
      log_loss: mean of -log of their Plackett-Luce probability, nats.
      error_rate: share of answers whose best completion is not the model's; nan without any.
    """

    annotator: str
    group: str
    answers: int
    log_loss: float
    error_rate: float


def split_scores(
    rows: Sequence[data.Row], utilities: np.ndarray, *, min_group_size: int = LEAST_GROUP
) -> tuple[dict[str, float], list[Person]]:
    """Measures how well utilities predict held-out comparisons: overall, by group and by person.

    Args:
      rows: R rows of at most K completions.
      utilities: `[R, K]`, nats.
      min_group_size: the smallest size of a group that is named.

    Returns:
      Measures by name: `votes.held_out_scores`, `soft_scores`, log-loss and soft KL of every
      group's own answers as `group=NAME/measure`, and person_log_loss and person_error_rate, means
      over persons, each of whom counts once; and the persons.
    """
    scores = votes.held_out_scores(rows, utilities) | soft_scores(rows, utilities)
    for group, numbers in group_rows(rows, min_group_size).items():
        of_group = [rows[n] for n in numbers]
        found = votes.held_out_scores(of_group, utilities[numbers])
        found |= soft_scores(of_group, utilities[numbers])
        kept = (name for name in found if name.endswith(("log_loss", "soft_kl")))
        scores |= {f"group={group}/{name}": found[name] for name in kept}
    persons = person_scores(rows, utilities)
    rates = [person.error_rate for person in persons if not np.isnan(person.error_rate)]
    if persons:
        scores["person_log_loss"] = float(np.mean([person.log_loss for person in persons]))
    if rates:
        scores["person_error_rate"] = float(np.mean(rates))
    return scores, persons


def soft_scores(rows: Sequence[data.Row], utilities: np.ndarray) -> dict[str, float]:
    """Compares predicted shares with those of the people who chose each completion.

    Args:
      rows: R rows of at most K completions.
      utilities: `[R, K]`, nats.

    Returns:
      soft_cross_entropy, soft_kl (KL(shares || model), nats) and soft_manhattan: means over
      comparisons, each counting once, on which at least two answers are known: rows, or votes
      where rows have votes, whatever they weigh. Answers without one best completion do not count,
      nor comparisons of which a completion was not shown. Absent if there is no such comparison.
    """
    shares: dict[tuple, Floats] = {}
    laws: dict[tuple, Floats] = {}
    known: dict[tuple, float] = {}
    for row, values in zip(rows, utilities.astype(float), strict=True):
        choice, num = data.best_place(row.ranks), len(row.completions)
        if choice is None or num < 2 or min(row.ranks) < 0:
            continue
        keys = [text_key(completion) for completion in row.completions]
        order = sorted(range(num), key=keys.__getitem__)
        about = (text_key(row.prompt), *(keys[k] for k in order))
        laws.setdefault(about, log_softmax(values[order]))
        shares.setdefault(about, np.zeros(num))[order.index(choice)] += row.weight
        votes_of_choice = 1.0 if row.votes is None else row.votes[choice]
        known[about] = known.get(about, 0.0) + votes_of_choice
    several = [about for about, number in known.items() if number >= FEWEST_ANSWERS]
    if not several:
        return {}
    size = (len(several), utilities.shape[1])
    law: Any = np.full(size, -np.inf)
    share: Any = np.zeros(size)
    for n, about in enumerate(several):
        num = len(laws[about])
        law[n, :num], share[n, :num] = laws[about], shares[about] / shares[about].sum()
    return {
        "soft_cross_entropy": float(np.mean(evaluation.soft_cross_entropy(law, share))),
        "soft_kl": float(np.mean(evaluation.soft_kl(law, share))),
        "soft_manhattan": float(np.mean(evaluation.manhattan_distance(law, share))),
    }


def person_scores(rows: Sequence[data.Row], utilities: np.ndarray) -> list[Person]:
    """Measures how well each person's answers are predicted.

    Args:
      rows: R rows; those without annotator, without an order or without weight do not count.
      utilities: `[R, K]`, nats.

    Returns:
      The persons, in the order of their first rows.
    """
    numbers = [
        n
        for n, row in enumerate(rows)
        if row.annotator is not None and not data.without_preference([row])
    ]
    if not numbers:
        return []
    names: dict[str, int] = {}
    groups: dict[str, set[str]] = {}
    of_rows = [rows[n] for n in numbers]
    for about in of_rows:
        names.setdefault(str(about.annotator), len(names))
        groups.setdefault(str(about.annotator), set()).add(about.group or "")
    persons: Any = np.array([names[str(row.annotator)] for row in of_rows])
    weights: Any = np.array([row.weight for row in of_rows])
    ranks = votes.pad_ranks(of_rows)
    values = utilities[numbers, : ranks.shape[1]]
    choices: Any = np.array([data.best_place(row.ranks) for row in of_rows], float)  # NaN = none
    chose = np.flatnonzero(np.isfinite(choices))
    shown: Any = np.where(ranks >= 0, values, -np.inf)[chose]
    errors = evaluation.choice_errors(shown, choices[chose].astype(int))
    mean = lambda values, part: np.asarray(
        evaluation.person_means(
            values, persons[part], num_persons=len(names), weights=weights[part]
        )
    )
    log_losses = mean(votes.ranking_losses()(values, ranks), slice(None))
    rates = mean(errors, chose)
    counts = np.bincount(persons, minlength=len(names))
    return [
        Person(
            name,
            next(iter(groups[name])) if len(groups[name]) == 1 else "",
            int(counts[n]),
            float(log_losses[n]),
            float(rates[n]),
        )
        for name, n in names.items()
    ]


def group_rows(rows: Sequence[data.Row], min_group_size: int) -> dict[str, list[int]]:
    """Returns the numbers of every group's rows, by name, without groups that are too small.

    Args:
      rows: the rows.
      min_group_size: the smallest size of a group, as `shatter.data.group_sizes` counts it.
    """
    sizes = data.group_sizes(rows)
    found: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        if row.group is not None and sizes[row.group] >= min_group_size:
            found.setdefault(row.group, []).append(n)
    return dict(sorted(found.items()))
