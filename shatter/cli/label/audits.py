"""Audits: queries that are drawn at random, kept apart, and never learned from.

They measure the members on what could be asked, whatever an arm prefers to ask.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from shatter import evaluation
from shatter.cli.label.answers import Answer
from shatter.cli.label.config import ProposeConfig
from shatter.cli.label.project import Project, item_key, utilities
from shatter.cli.label.queries import TextQuery, is_audit
from shatter.evaluation import Claims

_DRAW, _PLACES = 1, 2  # uses of a round's random numbers


def num_audits(config: ProposeConfig, number: int) -> int:
    """Returns how many queries of a round are audits, so that over all rounds they are the share.

    Args:
      config: the size of the batches and the share.
      number: the round, from 0.
    """
    share = config.audit_share * config.num_queries
    before, after = (math.floor(share * rounds + 1e-9) for rounds in (number, number + 1))
    return after - before


def draw_audits(config: ProposeConfig, number: int, num_choices: int) -> list[int]:
    """Draws the audits of a round uniformly among the comparisons that can be asked.

    Args:
      config: the size of the batches, the share and the seed.
      number: the round.
      num_choices: how many comparisons can be asked.

    Returns:
      The numbers of those that are audits.
    """
    rng = np.random.default_rng([config.seed, number, _DRAW])
    drawn = rng.choice(num_choices, num_audits(config, number), replace=False)
    return [int(q) for q in drawn]


def with_audits(
    config: ProposeConfig, number: int, chosen: Sequence[int], audits: Sequence[int]
) -> list[int]:
    """Returns a batch in its order: the audits at random places among those that an arm chose.

    Whoever answers the first half of a batch has then answered half of its audits, on average.
    """
    rng = np.random.default_rng([config.seed, number, _PLACES])
    batch = list(chosen)
    places = rng.choice(len(chosen) + len(audits), len(audits), replace=False)
    for place, audit in sorted(zip(places.tolist(), audits, strict=True)):
        batch.insert(place, audit)
    return batch


def audit_losses(
    project: Project, queries: dict[str, TextQuery], answers: Sequence[Answer]
) -> tuple[np.ndarray, Claims]:
    """Returns the members' log-loss on the audits, and what they claim about them.

    An answer counts if it names one best completion. The loss of an audit is the mean over its
    answers, by their weights.

    Args:
      project: the project, with the members as they are now.
      queries: all queries by id.
      answers: the answers that stand.

    Returns:
      The losses `[A]`, nats, and the claims `[A]`; their variance is that of these means.
    """
    given: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for answer in answers:
        is_best = np.array(answer.ranks) == min(answer.ranks)
        if is_audit(queries[answer.query_id]) and is_best.sum() == 1:
            given[answer.query_id].append((int(is_best.argmax()), answer.weight))
    if not given:
        return np.zeros(0), Claims(*np.zeros((len(Claims._fields), 0)))
    asked = [queries[name] for name in given]
    items = [
        project.item_numbers[item_key((query.prompt, text))]
        for query in asked
        for text in query.completions
    ]
    values = np.asarray(utilities(project, np.array(items, int)), np.float64)
    ends = np.cumsum([len(query.completions) for query in asked], dtype=int)
    losses, found = [], []
    for votes, members in zip(given.values(), np.split(values, ends[:-1], axis=1), strict=True):
        log_probs = log_softmax(members, axis=1)
        best, weights = (np.array(part) for part in zip(*votes, strict=True))
        weights = weights / weights.sum()
        losses.append(-weights @ np.log(np.exp(log_probs).mean(axis=0)[best]))
        claims = evaluation.claims(log_probs)
        found.append(claims._replace(variance=claims.variance * (weights @ weights)))
    return np.array(losses), Claims(*np.array(found).T)
