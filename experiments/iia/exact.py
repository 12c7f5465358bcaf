"""Where the objectives end with infinitely many answers: exact expected losses, minimised."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from experiments.iia.objectives import Objective
from shatter import choice
from shatter.types import Array

ANSWERS = ("choice", "ties", "ranking")
LARGEST = 256.0  # nats; gaps are sought within it
LARGEST_TIE = 32.0  # log nu


def wanted_share(share: float, num_clones: int, correlation: float) -> float:
    """How often the one message of type 1 is chosen from among m of type 2: a nested logit.

    `P = e^v1 / (e^v1 + m^lambda e^v2)`, v1 - v2 = log(p / (1 - p)), with the dissimilarity lambda =
    sqrt(1 - correlation): the utility of a message of type 2 is v2 + a part that all of them share
    + lambda times a Gumbel draw of its own, together standard Gumbel. Correlation 0 is Luce's rule,
    1 the dichotomy, P = p. Whoever wants type 2 is alike likely to choose any of them.

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
    return float(1 / (1 + np.exp(-log_odds)))


def answer_ranks(answer: str, size: int, slots: int) -> np.ndarray:
    """The ranks by which those who want type 1 and those who want type 2 answer a query.

    The wanted type comes before the other. Slot 0 holds the one message of type 1.

    Args:
      answer: ties, equal within a type; ranking, a random order within it, of which one stands for
        all, as nothing distinguishes the messages.
      size: K.
      slots: at least K; those beyond are empty.

    Returns:
      int `[2, slots]`, a row for either kind of rater; -1 on empty slots.
    """
    others = np.arange(2, size + 1) if answer == "ranking" else np.full(size - 1, 2)
    ranks = np.full((2, slots), -1)
    ranks[0, :size] = [1, *others]
    ranks[1, :size] = [size, *(others - 1)]
    return ranks


def fit_gap(objective: Objective, answer: str, size: int, slots: int, share: float) -> float:
    """The implied reward gap r1 - r2 that minimises the expected loss, p0 uniform.

    All messages of a type have one reward: the losses are convex and treat them alike. SLiC is flat
    between its two ends at even odds; the fit then is some point of it.

    Args:
      objective: the objective.
      answer: one of `ANSWERS`.
      size: K.
      slots: at least K; the same for all sizes, so that one program serves them.
      share: how often the message of type 1 is chosen; those who rank it first.

    Returns:
      The gap, in the unit of the objective's rewards.
    """
    ranks = answer_ranks(answer, size, slots)
    return _root(lambda gap: _slope(objective, answer == "choice", gap, ranks, share))


def fit_davidson(size: int, share: float) -> float:
    """The gap of Davidson's model, asked about uniform pairs of a query, two of a type being tied.

    Both its parameters, the gap and log nu, minimise the expected loss. Two messages of type 2 are
    always declared equal, two of different types never.

    Args:
      size: K; at 2 there are no ties, and nu is as good as 0.
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
    """The same gap by formula, where there is one.

    Pairs out of a choice are won by type 1 at odds m P / (1 - P): who chooses type 1 has it beat m
    messages, who does not has it beaten once. Pairs out of ranks are won at odds P / (1 - P).

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
    """Type 1's share of the policy that a gap leads to, p0 uniform.

    Args:
      gap: r1 - r2.
      num_clones: messages of type 2 for each of type 1 that there are to say; 1 = as many.
      beta: as in `Objective`.

    Returns:
      The share.
    """
    return float(1 / (1 + num_clones * np.exp(-gap / (beta or 1.0))))


@partial(jax.jit, static_argnums=(0, 1))
def _slope(objective: Objective, is_choice: bool, gap: Array, ranks: Array, share: Array) -> Array:
    """Of the expected loss in the gap."""
    ref_log_probs = jnp.zeros(ranks.shape[1])

    def expected_loss(gap: Array) -> Array:
        score = gap / (objective.scale or 1.0)
        scores = jnp.where(jnp.arange(ranks.shape[1]) == 0, score, 0.0)
        if is_choice:  # of slot 0, or of some other: slot 1 stands for all
            loss = lambda slot: objective.choice_loss(scores, ref_log_probs, slot, ranks[0] >= 0)
            first, second = jax.vmap(loss)(jnp.arange(2))
        else:
            loss = lambda ranks: objective.ranks_loss(scores, ref_log_probs, ranks)
            first, second = jax.vmap(loss)(ranks)
        return share * first + (1 - share) * second

    return jax.grad(expected_loss)(gap)


@jax.jit
def _davidson_slopes(gap: Array, log_tie: Array, size: Array, share: Array) -> tuple[Array, Array]:
    """Of the expected loss in the gap and in log nu."""
    mixed = 2 / size  # share of the pairs that are of two types

    def expected_loss(gap: Array, log_tie: Array) -> Array:
        of_two = choice.davidson_log_probs(gap * jnp.array([1.0, 0.0]), log_tie)
        of_one = choice.davidson_log_probs(jnp.zeros(2), log_tie)
        preferred = share * of_two[0] + (1 - share) * of_two[1]
        return -mixed * preferred - (1 - mixed) * of_one[2]

    return jax.grad(expected_loss, argnums=(0, 1))(gap, log_tie)


def _root(slope: Callable[[float], Array], largest: float = LARGEST) -> float:
    """Where a convex function of one number is least, from its slope."""
    return float(optimize.brentq(lambda x: float(slope(x)), -largest, largest))
