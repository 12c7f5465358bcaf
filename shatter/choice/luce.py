"""Luce's choice rule, its pair (Bradley-Terry), and Davidson's model of declared ties."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import at_least_float32
from shatter.types import Array, Key


def luce_log_probs(utilities: Array) -> Array:
    """Returns the log-probability of each item to be chosen.

    `log P(i) = u_i - log sum_k exp u_k`. Computed from differences to the largest utility with
    `log1p`, so that a pair is `log sigmoid(u_1 - u_2)` to full relative accuracy at any size of
    the utilities; in float32 at least.

    Source: Luce, Individual Choice Behavior (1959), the choice axiom; with utilities log pi(x) it
    is the choice model of Xu et al., Shattering the Agent-Environment Interface for Fine-Tuning
    Inclusive Language Models, https://arxiv.org/abs/2305.11455.

    Args:
      utilities: `[..., K]`, nats, defined up to a shift; -inf = absent.

    Returns:
      `[..., K]`, nats; -inf for absent items (all of them, where all are absent). Gradients with
      respect to the items that are present are finite.

    Raises:
      AssertionError: if `utilities` is a scalar or not floating.
    """
    chex.assert_type(utilities, float)
    if utilities.ndim < 1:
        raise AssertionError("utilities must have an axis of items [..., K], found a scalar")
    checkify.debug_check(~jnp.any(jnp.isnan(utilities)), "utilities hold a NaN")
    utilities = at_least_float32(utilities)
    best = jnp.argmax(utilities, axis=-1, keepdims=True)
    largest = jnp.take_along_axis(utilities, best, axis=-1)
    below = utilities - jnp.where(jnp.isneginf(largest), 0.0, largest)
    is_best = jax.nn.one_hot(best[..., 0], utilities.shape[-1], dtype=bool)
    others = jnp.where(is_best, 0.0, jnp.exp(below))
    return below - jnp.log1p(jnp.sum(others, axis=-1, keepdims=True))


def luce_log_prob(utilities: Array, choices: Array) -> Array:
    """Returns the log-probability of the item that was chosen: `luce_log_probs` at `choices`.

    Args:
      utilities: `[..., K]`, nats; -inf = absent.
      choices: int `[...]`, the chosen item, 0 <= choice < K.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    log_probs = luce_log_probs(utilities)
    chex.assert_type(choices, int)
    chex.assert_equal_shape([utilities[..., 0], choices])
    checkify.debug_check(
        jnp.all((choices >= 0) & (choices < utilities.shape[-1])),
        "a choice lies outside its query: expected 0 <= choice < K = "
        f"{utilities.shape[-1]}, found between {{low}} and {{high}}",
        low=jnp.min(choices),
        high=jnp.max(choices),
    )
    return jnp.take_along_axis(log_probs, choices[..., None], axis=-1)[..., 0]


def luce_sample(key: Key, utilities: Array) -> Array:
    """Draws choices by Luce's rule.

    Args:
      key: a typed key.
      utilities: `[..., K]`, nats; -inf = absent.

    Returns:
      int `[...]`, the chosen item.
    """
    return jax.random.categorical(key, at_least_float32(utilities), axis=-1)


def davidson_log_probs(utilities: Array, log_tie: Array | float) -> Array:
    """Returns the log-probabilities of first, second and "equally good" for a pair.

    `P(tie) = nu sqrt(p_1 p_2) / (p_1 + p_2 + nu sqrt(p_1 p_2))`, `P(i) = p_i / (same)`,
    `p = exp u`, `nu = exp log_tie`: a declared tie carries information here, unlike equal ranks.

    Source: Davidson, On Extending the Bradley-Terry Model to Accommodate Ties in Paired
    Comparison Experiments (1970), https://doi.org/10.1080/01621459.1970.10481082.

    Args:
      utilities: `[..., 2]`, nats.
      log_tie: `[...]` or a number, nats; -inf forbids ties.

    Returns:
      `[..., 3]`, nats: first preferred, second preferred, tie.

    Raises:
      AssertionError: if the last axis is not a pair.
    """
    chex.assert_axis_dimension(utilities, -1, 2)
    utilities = at_least_float32(utilities)
    middle = jnp.mean(utilities, axis=-1) + log_tie
    return luce_log_probs(jnp.concatenate([utilities, middle[..., None]], axis=-1))
