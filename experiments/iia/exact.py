"""The minima of the objectives with infinitely many answers, from exact expected losses."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy.special import expit

from experiments.iia.objectives import Objective
from shatter import choice
from shatter.types import Array

ANSWERS = ("choice", "ties", "ranking")
LARGEST = 256.0  # nats; gaps are sought within it
LARGEST_TIE = 32.0  # log nu


def wanted_share(share: float, num_clones: int, correlation: float) -> float:
    """Returns how often the one message of type 1 is chosen among m of type 2, by a nested logit.

    `P = e^v1 / (e^v1 + m^lambda e^v2)`, v1 - v2 = log(p / (1 - p)), with the dissimilarity lambda =
    sqrt(1 - correlation): the utility of a message of type 2 is v2 + a part that all of them share
    + lambda times a Gumbel draw of its own, together standard Gumbel. Correlation 0 is Luce's rule,
    1 the dichotomy, P = p. A rater who wants type 2 is equally likely to choose any of them.

    Source: McFadden, Modelling the Choice of Residential Location (1978), the nested logit; as a
    bridge from Luce's rule to the dichotomy it is ours.

    Args:
      share: p, the share with whom type 1 wins against one message of type 2.
      num_clones: m.
      correlation: of the utilities of two messages of type 2, between 0 and 1.

    Returns:
      P.
    """
    log_odds = np.log(share / (1 - share)) - np.sqrt(1 - correlation) * np.log(num_clones)
    return float(expit(log_odds))


def answer_ranks(answer: str, size: int, slots: int) -> np.ndarray:
    """Returns the ranks that a rater who wants type 1, and one who wants type 2, give to a query.

    The wanted type comes before the other. Slot 0 holds the one message of type 1.

    Args:
      answer: "ties": equal ranks within a type; "ranking": a random order within it, of which one
        stands for all, because nothing distinguishes the messages.
      size: K.
      slots: at least K; those beyond are empty.

    Returns:
      int `[2, slots]`, a row for each kind of rater; -1 on empty slots.
    """
    others = np.arange(2, size + 1) if answer == "ranking" else np.full(size - 1, 2)
    ranks = np.full((2, slots), -1)
    ranks[0, :size] = [1, *others]
    ranks[1, :size] = [size, *(others - 1)]
    return ranks


def fit_gap(objective: Objective, answer: str, size: int, slots: int, share: float) -> float:
    """Returns the implied reward gap r1 - r2 that minimises the expected loss, p0 uniform.

    All messages of a type have one reward, because the losses are convex and symmetric in them. At
    even odds SLiC's loss is flat between two ends, and the fit is some point between them.

    Args:
      objective: the objective.
      answer: one of `ANSWERS`.
      size: K.
      slots: at least K; the same for all sizes, so that they share one compiled program.
      share: how often the message of type 1 is chosen, or ranked first.

    Returns:
      The gap, in the unit of the objective's rewards.
    """
    ranks = answer_ranks(answer, size, slots)
    return _root(lambda gap: _slope(objective, answer == "choice", gap, ranks, share))


def fit_davidson(size: int, share: float) -> float:
    """Returns the gap of Davidson's model of ties, fitted to uniform pairs of a query.

    Both its parameters, the gap and log nu, minimise the expected loss. Two messages of type 2 are
    always declared equal, two of different types never.

    Args:
      size: K; at 2 there are no ties, so that nu is taken as 0 (its log as -LARGEST_TIE).
      share: share of the raters who want type 1.

    Returns:
      The gap, nats.
    """

    def best_gap(log_tie: float) -> float:
        return _root(lambda gap: _davidson_slopes(gap, log_tie, size, share)[0])

    if size == 2:
        return best_gap(-LARGEST_TIE)
    return best_gap(
        _root(
            lambda log_tie: _davidson_slopes(best_gap(log_tie), log_tie, size, share)[1],
            LARGEST_TIE,
        )
    )


def closed_form(name: str, answer: str, delta: float, odds: float) -> float | None:
    """Returns the same gap by a formula, where there is one.

    In pairs made of a choice, type 1 wins at odds m P / (1 - P): if it is chosen it beats m
    messages, if it is not it is beaten once. In pairs made of ranks it wins at odds P / (1 - P).

    Args:
      name: the objective.
      answer: one of `ANSWERS`.
      delta: SLiC's margin.
      odds: of type 1 in a pair.

    Returns:
      The gap; None for Plackett-Luce on ties and rankings, where there is no formula.
    """
    if name == "ipo":
        return float(odds / (1 + odds) - 0.5)
    if name == "slic":
        return float(delta * np.sign(odds - 1))
    return float(np.log(odds)) if name == "dpo" or answer == "choice" else None


def type_share(gap: float, num_clones: int, beta: float | None) -> float:
    """Returns type 1's share of the policy that a gap leads to, p0 uniform.

    Args:
      gap: r1 - r2.
      num_clones: how many messages of type 2 the policy can say for each of type 1.
      beta: as in `Objective`.

    Returns:
      The share.
    """
    return float(1 / (1 + num_clones * np.exp(-gap / (beta or 1.0))))


@partial(jax.jit, static_argnums=(0, 1))
def _slope(objective: Objective, is_choice: bool, gap: Array, ranks: Array, share: Array) -> Array:
    """Returns the slope of the expected loss in the gap."""
    ref_log_probs = jnp.zeros(ranks.shape[1])

    def expected_loss(gap: Array) -> Array:
        score = gap / (objective.scale or 1.0)
        scores = jnp.where(jnp.arange(ranks.shape[1]) == 0, score, 0.0)
        if is_choice:  # slot 1 stands for all but slot 0
            loss = lambda slot: objective.choice_loss(scores, ref_log_probs, slot, ranks[0] >= 0)
            first, second = jax.vmap(loss)(jnp.arange(2))
        else:
            loss = lambda ranks: objective.ranks_loss(scores, ref_log_probs, ranks)
            first, second = jax.vmap(loss)(ranks)
        return share * first + (1 - share) * second

    return jax.grad(expected_loss)(gap)


@jax.jit
def _davidson_slopes(gap: Array, log_tie: Array, size: Array, share: Array) -> tuple[Array, Array]:
    """Returns the slopes of the expected loss in the gap and in log nu."""
    mixed = 2 / size  # share of the pairs that are of two types

    def expected_loss(gap: Array, log_tie: Array) -> Array:
        of_two = choice.davidson_log_probs(gap * jnp.array([1.0, 0.0]), log_tie)
        of_one = choice.davidson_log_probs(jnp.zeros(2), log_tie)
        preferred = share * of_two[0] + (1 - share) * of_two[1]
        return -mixed * preferred - (1 - mixed) * of_one[2]

    return jax.grad(expected_loss, argnums=(0, 1))(gap, log_tie)


def _root(slope: Callable[[float], Array], largest: float = LARGEST) -> float:
    """Returns where a convex function of one number has its minimum, from its slope."""
    return float(optimize.brentq(lambda x: float(slope(x)), -largest, largest))
