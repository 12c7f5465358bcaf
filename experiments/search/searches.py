"""The searches of both settings, by the name of the arm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from experiments.search.config import Settled
from shatter import inference, search
from shatter.types import Key

Search = Callable[..., search.Found]


def part_key(config: Settled, part: int) -> Key:
    """Returns the key of a part of the run: problems, searches, training."""
    return jax.random.fold_in(jax.random.key(config.seed), part)


def search_of(
    arm: str,
    *,
    beta: float,
    twist: inference.Twist | inference.TwistModel,
    top_k: int,
    num_considered: int = 16,
) -> Search:
    """Returns the search of an arm, `(lm, params, key, prompt, ...) -> found`.

    Args:
      arm: the arm.
      beta: KL coefficient.
      twist: log psi, for the arms that have one.
      top_k: the likeliest tokens that a beam or a tree goes on with.
      num_considered: the tokens that sequential halving starts with, of tree_gumbel.
    """
    weighed, few = {"beta": beta}, {"top_k": top_k}
    guided, tree = {"twist": twist}, {"twist": twist, "beta": beta, "top_k": top_k}
    gumbel = search.gumbel_muzero(max_num_considered_actions=num_considered)
    made: dict[str, tuple[Search, dict[str, Any]]] = {
        "best_of_n": (search.best_of_n, {}),
        "beam": (search.beam_search, few),
        "beam_by_value": (search.beam_search, guided | few),
        "guided": (search.value_guided, guided),
        "smc": (search.sequential_monte_carlo, guided | weighed),
        "smc_without_twist": (search.sequential_monte_carlo, weighed),
        "tree_gumbel": (search.tree_search, tree | {"policy": gumbel}),
        "tree_muzero": (search.tree_search, tree | {"policy": search.muzero()}),
    }
    function, given = made[arm]
    return partial(function, **given)
