"""V-optimal design: asking what is expected to lower the variance of what the model says.

To second order KL(q || pi) is half the q-weighted variance of log pi. So a query is worth how much
its answer lowers the variance of the scores, weighted by a law over the texts. An answer is taken
as linear in the scores: with p the predicted choice, and the contrasts of a query
`z_k = sqrt(p_k) (L_k - sum_j p_j L_j) / s`,

    drop(query) = sum_x w(x) sum_k Cov(L(x), z_k)^2,     s^2 = 1 + pi v / 8,

v the largest variance of a difference of two of its scores, p = softmax(mean / s). For a pair it is
`(p (1 - p) / s^2) sum_x w(x) (C(x, i) - C(x, j))^2`. After a query every covariance loses what the
answer will teach, whatever it is: `C <- C - sum_k c_k c_k'`, `c_k(x) = Cov(L(x), z_k)`.

Source: Cohn, Neural Network Exploration Using Optimal Experiment Design (1994), for the design;
MacKay, The Evidence Framework Applied to Classification Networks (1992), for s. Their combination
for choices, and the weights, are ours.
"""

import jax
import jax.numpy as jnp

from shatter.exploration.beliefs import (
    Belief,
    finite,
    members_belief,
    possible,
    possible_in,
    restrict,
)
from shatter.numerics import at_least_float32
from shatter.types import Array

_EXACT = jax.lax.Precision.HIGHEST
_NOTHING = 1e-12  # nats squared; drops of this size come from rounding


def law_weights(log_law: Array) -> Array:
    """Returns the weights of a law given by log-probs up to a shift; all 0 where none is finite.

    NaN counts as impossible.
    """
    log_law = at_least_float32(log_law)
    weights = jax.nn.softmax(jnp.where(jnp.isnan(log_law), -jnp.inf, log_law))
    return jnp.where(jnp.isfinite(weights), weights, 0.0)


def law_belief(
    scores: Array | Belief, relevant: Array, weights: Array, same: Array | None = None
) -> Belief:
    """Returns the belief about scores relative to their mean under a law.

    Texts that are not relevant, and texts that are impossible to all members, tell nothing.

    Args:
      scores: `[M, T]` of members, or a belief about T texts.
      relevant: bool `[T]`, true at least where the weights are above 0.
      weights: `[T]`, of sum 1, or all 0.
      same: see `members_belief`.

    Returns:
      The belief.
    """
    known = relevant & possible_in(scores)
    if isinstance(scores, Belief):
        belief = finite(restrict(scores, known, mean=0.0))
        return restrict(centre(belief, weights), known)
    values = possible(jnp.where(relevant[None], scores, -jnp.inf))
    values -= jnp.sum(weights[None] * values, axis=1, keepdims=True)
    return restrict(members_belief(jnp.where(known[None], values, 0.0), same=same), known)


def relative(drops: Array, allowed: Array) -> Array:
    """Returns drops in units of the largest that is allowed, so that ties do not depend on size."""
    return drops / jnp.maximum(jnp.max(drops, where=allowed, initial=0.0), _NOTHING)


def centre(belief: Belief, weights: Array) -> Belief:
    """Returns the belief about scores relative to their weighted mean, free of a common shift.

    Args:
      belief: about N texts.
      weights: `[N]`, of sum 1.

    Returns:
      The belief about `L(x) - sum_y w(y) L(y)`.
    """
    rows = jnp.einsum("xy,y->x", belief.covariance, weights, precision=_EXACT)
    common = jnp.sum(weights * rows)
    covariance = belief.covariance - rows[:, None] - rows[None, :] + common
    return Belief(belief.mean - jnp.sum(weights * belief.mean), covariance)


def pair_drops(belief: Belief, weights: Array, candidates: Array) -> Array:
    """Returns the expected drop of the weighted variance by every pair of candidates.

    Args:
      belief: about T texts.
      weights: `[T]`, >= 0, the law over the texts.
      candidates: int `[N]`, texts that may be asked about.

    Returns:
      `[N, N]`, nats squared, symmetric, >= 0, 0 on the diagonal.
    """
    mean = belief.mean[candidates]
    columns = belief.covariance[:, candidates]
    own = columns[candidates]
    variances = jnp.diagonal(own)
    spread = variances[:, None] + variances[None, :] - 2.0 * own
    _, rate = answer_rates(mean[:, None] - mean[None, :], spread)
    products = jnp.einsum("x,xi,xj->ij", weights, columns, columns, precision=_EXACT)
    squares = jnp.diagonal(products)
    total = jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    return jnp.where(jnp.eye(len(candidates), dtype=bool), 0.0, rate * total)


def query_contrasts(mean: Array, covariance: Array, valid: Array) -> tuple[Array, Array]:
    """Returns the contrasts of a query as weights on its K scores, and s^2.

    Args:
      mean: `[K]`, nats.
      covariance: `[K, K]`.
      valid: bool `[K]`, false on empty slots.

    Returns:
      `[R, K]`, 0 with fewer than two responses, and `[]`. R is K, or 1 for a pair, whose two
      contrasts are alike.
    """
    variances = jnp.diagonal(covariance)
    gaps = variances[:, None] + variances[None, :] - 2.0 * covariance
    both = valid[:, None] & valid[None, :]
    square = 1.0 + jnp.pi / 8.0 * jnp.max(gaps, where=both, initial=0.0)
    usable = jnp.sum(valid) >= 2
    utilities = jnp.where(valid, mean / jnp.sqrt(square), -jnp.inf)
    law = jax.nn.softmax(jnp.where(usable, utilities, 0.0)) * usable
    if len(mean) == 2:
        return jnp.sqrt(law[0] * law[1] / square) * jnp.array([[1.0, -1.0]], law.dtype), square
    rows = jnp.eye(len(mean), dtype=law.dtype) - law[None, :]
    return jnp.sqrt(law / square)[:, None] * rows, square


def learn(covariance: Array, slots: Array, contrasts: Array) -> Array:
    """Returns the covariance that the answer to a query leaves, whatever the answer is.

    Args:
      covariance: `[T, T]`, of all texts.
      slots: int `[K]`, the texts of the query.
      contrasts: `[R, K]`, of `query_contrasts`.

    Returns:
      `[T, T]`.
    """
    columns = jnp.einsum("xj,rj->rx", covariance[:, slots], contrasts, precision=_EXACT)
    return covariance - jnp.einsum("rx,ry->xy", columns, columns, precision=_EXACT)


def answer_rates(difference: Array, spread: Array) -> tuple[Array, Array]:
    """Returns `p (1 - p)` and `p (1 - p) / s^2` of pairs.

    Args:
      difference: the means of the pairs' log-odds, nats.
      spread: the variances of the log-odds; what rounding puts below 0 counts as 0.

    Returns:
      The variances of the predicted choices, and how fast an answer lowers variances; both in the
      shape of the arguments.
    """
    square = 1.0 + jnp.pi / 8.0 * jnp.maximum(spread, 0.0)
    odds = difference / jnp.sqrt(square)
    chances = jax.nn.sigmoid(odds) * jax.nn.sigmoid(-odds)
    return chances, chances / square
