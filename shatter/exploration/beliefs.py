"""What is known of the scores of texts, as a Gaussian: from members, or from a linear model."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32
from shatter.types import Array

_HALF_SHRUNK = 16  # members whose covariances are trusted half
_HIGHEST = 1e8  # nats; sums of the fourth powers of such scores are still float32


class Belief(NamedTuple):
    """A Gaussian belief about the scores of texts: N candidates, or `[Q, K]` slots of queries.

    The arms of V-optimal design take a belief in the place of members' log-probs.
    `members_belief` makes one of members, `linear_belief` without them.

    Attributes:
      mean: `[N]` or `[Q, K]`, nats.
      covariance: `[N, N]` or `[Q, K, Q, K]`, nats squared.
    """

    mean: Array
    covariance: Array


def shrinkage(num_members: int) -> float:
    """Returns how far to shrink the covariances of M members to their diagonal: `16 / (16 + M)`.

    Covariances of few members are mostly noise, and an acquisition that searches for the largest of
    many finds the noise. The rule is ours: .8 for 4 members, .5 for 16, .2 for 64.

    Args:
      num_members: M.

    Returns:
      The weight of the diagonal, between 0 and 1.
    """
    return _HALF_SHRUNK / (_HALF_SHRUNK + num_members)


def members_belief(
    log_probs: Array, *, shrink: float | Array | None = None, same: Array | None = None
) -> Belief:
    """Returns the mean and the shrunk covariance of the members' log-probs.

    `C(x, y) = (1 - s) Cov_m(L_m(x), L_m(y))` for x other than y, and the variance for x = y. With
    one member all covariances are 0. Where a text is impossible to a member (-inf, or NaN), the
    member's least log-prob of the other texts stands for it. Log-probs count to 1e8 nats either
    way.

    Args:
      log_probs: floating `[M, N]`, nats, in one unit across texts: shift each member first where
        its log-probs have a free shift.
      shrink: s, between 0 and 1; `shrinkage(M)` if None.
      same: bool `[N, N]`, true where two texts are one document, whose covariance is not shrunk;
        none are if None.

    Returns:
      The belief, in float32 at least.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_rank(log_probs, 2)
    chex.assert_type(log_probs, float)
    scores = possible(log_probs)
    num_members, num_texts = scores.shape
    shrink = shrinkage(num_members) if shrink is None else shrink
    # Relative to the first member, so that members that agree have the covariance 0 at any size.
    gaps = scores - scores[:1]
    gaps -= jnp.mean(gaps, axis=0, keepdims=True)
    precision = jax.lax.Precision.HIGHEST
    raw = jnp.einsum("mx,my->xy", gaps, gaps, precision=precision) / max(num_members - 1, 1)
    kept = jnp.eye(num_texts, dtype=bool) if same is None else same
    return Belief(jnp.mean(scores, axis=0), jnp.where(kept, raw, (1.0 - shrink) * raw))


def linear_belief(mean: Array, features: Array, covariance: Array) -> Belief:
    """Returns the belief about scores that are linear in Gaussian parameters: `C = J S J'`.

    With J the Jacobian of the scores at a point estimate and S the inverse of the curvature there,
    it is the Laplace approximation; for scores that are linear in features J is exact.

    Args:
      mean: `[...]`, the scores at the point estimate, nats.
      features: `[..., P]`, J, the features of each text or the Jacobian of its score.
      covariance: `[P, P]`, S, for example of `shatter.ensembles.laplace`.

    Returns:
      The belief.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    num_features = covariance.shape[0]
    chex.assert_shape(features, (*mean.shape, num_features))
    chex.assert_shape(covariance, (num_features, num_features))
    flat = at_least_float32(features).reshape(-1, num_features)
    precision = jax.lax.Precision.HIGHEST
    product = jnp.einsum("xp,pq,yq->xy", flat, covariance, flat, precision=precision)
    symmetric = 0.5 * (product + product.T)
    return Belief(at_least_float32(mean), symmetric.reshape(mean.shape + mean.shape))


def scores_of(scores: Array | Belief) -> Array:
    """Returns the members' log-probs `[M, ...]` as they are, the mean of a belief as `[1, ...]`."""
    return scores.mean[None] if isinstance(scores, Belief) else scores


def possible(log_probs: Array) -> Array:
    """Returns finite log-probs `[M, N]`; an impossible text counts as its member's least likely."""
    log_probs = at_least_float32(log_probs)
    is_possible = log_probs > LOG_ZERO
    least = jnp.min(log_probs, axis=1, keepdims=True, where=is_possible, initial=jnp.inf)
    least = jnp.where(jnp.isfinite(least), least, 0.0)
    return jnp.clip(jnp.where(is_possible, log_probs, least), -_HIGHEST, _HIGHEST)


def finite(belief: Belief) -> Belief:
    """Returns a belief in float32 at least whose covariances are finite.

    Covariances that are not are errors under checkify, and count as 0.
    """
    covariance = at_least_float32(belief.covariance)
    known = jnp.isfinite(covariance)
    checkify.debug_check(jnp.all(known), "the belief's covariance holds what is not finite")
    covariance = jnp.clip(jnp.where(known, covariance, 0.0), -(_HIGHEST**2), _HIGHEST**2)
    return Belief(at_least_float32(belief.mean), covariance)


def possible_in(scores: Array | Belief) -> Array:
    """Marks the texts `[...]` that at least one member, or the mean of a belief, finds possible."""
    return jnp.any(at_least_float32(scores_of(scores)) > LOG_ZERO, axis=0)


def restrict(belief: Belief, known: Array, *, mean: float = -_HIGHEST) -> Belief:
    """Returns a belief about N texts in which those that are not known, bool `[N]`, tell nothing.

    Their covariances are 0. Their mean, unless another is given, is so low that nobody chooses them
    over a known text.
    """
    both = known[:, None] & known[None, :]
    means = jnp.clip(at_least_float32(belief.mean), -_HIGHEST, _HIGHEST)
    return Belief(jnp.where(known, means, mean), jnp.where(both, belief.covariance, 0.0))
