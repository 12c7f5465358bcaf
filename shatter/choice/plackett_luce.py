"""Plackett-Luce: full rankings, partial rankings, and ranks with unresolved orders."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.choice.luce import luce_log_probs
from shatter.numerics import at_least_float32
from shatter.types import Array, Key


def plackett_luce_log_prob(utilities: Array, ranking: Array) -> Array:
    """Returns the log-probability of a ranking: Luce's rule for the best, then for the rest.

    `log P = sum_j (u_{r_j} - log sum_{k not in r_1..r_{j-1}} exp u_k)`.

    Source: Plackett, The Analysis of Permutations (1975), https://doi.org/10.2307/2346567.

    Args:
      utilities: `[..., K]`, nats; -inf = absent.
      ranking: int `[..., K]`, item indices, best first; -1 pads: those items were shown and stay
        below the ranked ones, in no known order.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([utilities, ranking], [float, int])
    chex.assert_equal_shape([utilities, ranking])
    chex.assert_axis_dimension_gt(utilities, -1, 0)
    num_items = utilities.shape[-1]
    checkify.debug_check(
        jnp.all((ranking >= -1) & (ranking < num_items)),
        f"a ranking names an item outside its query: expected -1 <= item < K = {num_items}, "
        "found between {low} and {high}",
        low=jnp.min(ranking),
        high=jnp.max(ranking),
    )
    ranked = ranking >= 0
    is_item = jax.nn.one_hot(ranking, num_items, dtype=bool)  # -1: nowhere
    placed_before = (jnp.cumsum(is_item, axis=-2) - is_item) > 0
    stages = luce_log_probs(jnp.where(placed_before, -jnp.inf, utilities[..., None, :]))
    stage = jnp.take_along_axis(stages, jnp.maximum(ranking, 0)[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(ranked, stage, 0.0), axis=-1)


def plackett_luce_sample(key: Key, utilities: Array) -> Array:
    """Draws rankings by the descending order of utilities plus independent Gumbel noise.

    Args:
      key: a typed key.
      utilities: `[..., K]`, nats; -inf = absent.

    Returns:
      int `[..., K]`, item indices, best first; -1 in place of absent items, at the end.
    """
    utilities = at_least_float32(utilities)
    noisy = utilities + jax.random.gumbel(key, utilities.shape, utilities.dtype)
    order = jnp.argsort(-noisy, axis=-1)
    absent = jnp.isneginf(jnp.take_along_axis(utilities, order, axis=-1))
    return jnp.where(absent, -1, order)


def ranks_log_prob(utilities: Array, ranks: Array) -> Array:
    """Returns the log-probability of ranks in which equal means "order unresolved".

    It is the sum of Plackett-Luce over all strict orders that agree with the ranks. Plackett-Luce
    has no memory, so that blocks of equal ranks factorise. The chance that block A comes before the
    rest, whose total strength is s_B, is that of a race of exponential clocks with rates
    s = exp u:

        P(A before B) = int_0^inf s_B exp(-s_B t) prod_{i in A} (1 - exp(-s_i t)) dt,

    which for one item is Luce's rule in closed form. For several items it is also the alternating
    sum over the subsets of A, `sum_S (-1)^|S| s_B / (s_B + s_S)`, but that has 2^|A| terms and
    cancels. The trapezoidal rule for the integral over log t has only positive terms, converges
    exponentially, is exact up to rounding and costs the same for every |A|.

    Args:
      utilities: `[..., K]`, nats; -inf = absent. An absent item that is ranked below others
        changes nothing; ranked above one that is present it makes the ranks impossible.
      ranks: int `[..., K]`, smaller is better; < 0 = not shown, in no denominator.

    Returns:
      `[...]`, nats. A choice, ranks (1, 2, ..., 2), gives Luce's log-probability; all equal, 0.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([utilities, ranks], [float, int])
    chex.assert_equal_shape([utilities, ranks])
    chex.assert_axis_dimension_gt(utilities, -1, 0)
    checkify.debug_check(
        ~jnp.any(jnp.isnan(utilities) & (ranks >= 0)), "utilities of ranked items hold a NaN"
    )
    utilities = at_least_float32(utilities)
    if utilities.shape[-1] == 2:
        return _pair_log_prob(utilities, ranks)
    return jnp.vectorize(_ranks_log_prob, signature="(k),(k)->()")(utilities, ranks)


def _pair_log_prob(utilities: Array, ranks: Array) -> Array:
    """Returns the case K = 2, one log-sigmoid, which is the inner loop of most runs."""
    counts = (ranks[..., 0] != ranks[..., 1]) & jnp.all(ranks >= 0, axis=-1)
    counts &= ~jnp.all(jnp.isneginf(utilities), axis=-1)
    log_odds = jnp.where(counts, utilities[..., 0], 0.0) - jnp.where(counts, utilities[..., 1], 0.0)
    first_is_better = ranks[..., 0] < ranks[..., 1]
    log_prob = jax.nn.log_sigmoid(jnp.where(first_is_better, log_odds, -log_odds))
    return jnp.where(counts, log_prob, 0.0)


def _ranks_log_prob(utilities: Array, ranks: Array) -> Array:
    """Returns the log-probability of one query.

    Row i of every matrix is about the block of item i, which is counted at its first item.
    """
    num_items = utilities.shape[0]
    shown = ranks >= 0
    same = (ranks[:, None] == ranks[None, :]) & shown[:, None] & shown[None, :]
    absent = jnp.isneginf(utilities)[None, :]
    worse = (ranks[:, None] < ranks[None, :]) & shown[:, None] & ~absent
    is_first = ~jnp.any(same & np.tri(num_items, k=-1, dtype=bool), axis=1)
    counts = shown & is_first & jnp.any(worse, axis=1)  # the last block is last with certainty
    # A row that does not count holds zeros, so that its gradient is 0 and not NaN.
    neutral = jnp.where(counts, -jnp.inf, 0.0)[:, None]
    race = jnp.where(counts[:, None] & (same | worse), utilities[None, :], neutral)
    single = jnp.diagonal(luce_log_probs(race))
    several = counts & (jnp.sum(same, axis=1) > 1)
    neutral = jnp.where(several, -jnp.inf, 0.0)[:, None]
    block = jnp.where(several[:, None] & same & ~absent, utilities[None, :], jnp.inf)
    rest = jnp.where(several[:, None] & worse, utilities[None, :], neutral)
    together = jax.vmap(_block_before_rest)(block, rest)
    together = jnp.where(jnp.any(same & absent, axis=1), -jnp.inf, together)
    log_prob = jnp.where(several, together, single)
    return jnp.sum(jnp.where(counts, log_prob, 0.0))


def _block_before_rest(block: Array, rest: Array) -> Array:
    """Returns the log of P(A before B), integrated over x = log(s_B t).

    +inf in `block` and -inf in `rest` mark items that are not members.
    """
    rule = _race_nodes(block.shape[0], float(jnp.finfo(block.dtype).eps))
    nodes, log_weights = (jnp.asarray(part, block.dtype) for part in rule)
    member = ~jnp.isposinf(block)
    # The differences come first, because they are exact for utilities of any size.
    largest = jax.lax.stop_gradient(jnp.max(rest))
    log_rate = jnp.where(member, block, 0.0) - largest - jax.nn.logsumexp(rest - largest)
    log_arrived = _log_arrived(log_rate[None, :] + nodes[:, None])
    log_arrived = jnp.sum(jnp.where(member[None, :], log_arrived, 0.0), axis=1)
    return jax.nn.logsumexp(log_weights + log_arrived)


def _race_nodes(num_items: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes of the trapezoidal rule and the logs of their weights.

    The integrand is analytic, and on the line Im x = a, |a| < pi / 2, its integral is at most
    cos(a)^-num_items times that on the real line. So the relative error of the rule is at most
    2 cos(a)^-num_items exp(-2 pi a / step), for every a; the step makes it about `eps`.
    """
    digits = -math.log(eps)
    a = np.linspace(0.01, 1.57, 157)
    step = np.max(2.0 * math.pi * a / (digits - num_items * np.log(np.cos(a))))
    nodes = np.arange(-digits, math.log(2.0 * digits + 3.0 * num_items), step)
    log_weights = nodes - np.exp(nodes)
    return nodes, log_weights - np.log(np.sum(np.exp(log_weights)))


def _log_arrived(x: Array) -> Array:
    """Returns `log(1 - exp(-exp(x)))`, accurate at both ends, in value and gradient."""
    late = jnp.log1p(-jnp.exp(-jnp.exp(jnp.clip(x, 0.0, 8.0))))  # 0 from 8 on
    is_early = x < 0.0
    y = jnp.where(is_early, x, 0.0)
    rate_time = jnp.exp(jnp.maximum(y, -40.0))
    early = y + jnp.log(-jnp.expm1(-rate_time) / rate_time)
    return jnp.where(is_early, early, late)
