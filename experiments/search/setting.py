"""What a setting gives to the run: searches, trained policies, facts; and the exact setting."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from experiments.common.didactic import check_documents, make_world
from experiments.search import arms
from experiments.search.config import Settled

Arrays = dict[str, np.ndarray]

MOST_DOCUMENTS = 5_000
BETAS = np.geomspace(0.03, 30.0, 40)


class Setting(NamedTuple):
    """A setting with its problems.

    Attributes:
      search: `(arm, budget) -> metrics[S]`, and other arrays with more axes.
      train: `(arm) -> metrics[S, 1 + steps]`, and "best_learned" and "best_gold" `[S, budgets]`.
      facts: about the seeds, `[S]`.
      optima: by metric `[S, N]`, what the optima of the learned reward at KL coefficients have;
        empty where nothing is enumerated.
      text: `(tokens) -> text`; None = there are no texts.
    """

    search: Callable[[str, int], Arrays]
    train: Callable[[str], Arrays]
    facts: Arrays
    optima: Arrays
    text: Callable[[np.ndarray], str] | None = None


def check_exact(config: Settled) -> None:
    """Raises a UsageError if there are too many documents to enumerate."""
    check_documents(config.vocab_size, config.max_length, most=MOST_DOCUMENTS)


def open_exact(config: Settled) -> Setting:
    """Returns the exact setting."""
    world = make_world("tabular", vocab_size=config.vocab_size, max_length=config.max_length)
    drawn = arms.problems(config, world)
    return Setting(
        search=partial(arms.run_search, config, world, drawn),
        train=partial(arms.run_training, config, world, drawn),
        facts=arms.facts(config, world, drawn),
        optima=arms.frontier(config, world, drawn, BETAS),
    )
