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


def soft_scores(encoded: Sequence[data.Encoded], utilities: np.ndarray) -> dict[str, float]:
    """Compares predicted shares with those of the people who chose each completion.

    Args:
      encoded: the rows.
      utilities: `[rows, K]`, nats.

    Returns:
      soft_cross_entropy, soft_kl (KL(shares || model), nats) and soft_manhattan: means over
      comparisons, each counting once, on which at least two answers are known: rows, or votes
      where rows have votes, whatever they weigh. Answers without one best completion do not count,
      nor comparisons of which a completion was not shown. Absent if there is no such comparison.
    """
    shares: dict[tuple, Floats] = {}
    laws: dict[tuple, Floats] = {}
    known: dict[tuple, float] = {}
    for row, values in zip(encoded, utilities.astype(float), strict=True):
        choice, num = data.best_place(row.ranks), len(row.completions)
        if choice is None or num < 2 or min(row.ranks) < 0:
            continue
        keys = [text_key(completion) for completion in row.row.completions]
        order = sorted(range(num), key=keys.__getitem__)
        about = (row.prompt.tobytes(), *(keys[k] for k in order))
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


def person_scores(encoded: Sequence[data.Encoded], utilities: np.ndarray) -> list[Person]:
    """Measures how well each person's answers are predicted.

    Args:
      encoded: the rows; those without annotator, without an order or without weight do not count.
      utilities: `[rows, K]`, nats.

    Returns:
      The persons, in the order of their first rows.
    """
    rows = [
        n
        for n, row in enumerate(encoded)
        if row.row.annotator is not None and not data.without_preference([row.row])
    ]
    if not rows:
        return []
    names: dict[str, int] = {}
    groups: dict[str, set[str]] = {}
    for n in rows:
        about = encoded[n].row
        names.setdefault(str(about.annotator), len(names))
        groups.setdefault(str(about.annotator), set()).add(about.group or "")
    of_rows = [encoded[n].row for n in rows]
    persons: Any = np.array([names[str(row.annotator)] for row in of_rows])
    weights: Any = np.array([row.weight for row in of_rows])
    ranks = votes.pad_ranks(of_rows)
    values = utilities[rows, : ranks.shape[1]]
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


def group_rows(encoded: Sequence[data.Encoded], min_group_size: int) -> dict[str, list[int]]:
    """Returns the numbers of every group's rows, by name, without groups that are too small.

    Args:
      encoded: the rows.
      min_group_size: the smallest size of a group, as `shatter.data.group_sizes` counts it.
    """
    sizes = data.group_sizes([row.row for row in encoded])
    found: dict[str, list[int]] = {}
    for n, row in enumerate(encoded):
        if row.row.group is not None and sizes[row.row.group] >= min_group_size:
            found.setdefault(row.row.group, []).append(n)
    return dict(sorted(found.items()))
