"""The policy step of online pipelines: REINFORCE on a probability of winning, with a nudge."""

import chex
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.losses.reinforcement import reinforce_loss
from shatter.numerics import at_least_float32
from shatter.types import Array


def nudged_reinforce_loss(
    log_probs: Array,
    win_probs: Array,
    anchor_kls: Array,
    *,
    beta: float | Array,
    nudge: float | Array = 0.0,
) -> Array:
    """Returns the loss of a response that may beat another one, near an anchor, with a nudge.

    Its value is `-(p - 1/2 + eps) + beta KL(anchor || pi)` and its gradient
    `-(p - 1/2 + eps) grad log pi + beta grad KL(anchor || pi)`, the KL being that of next-token
    laws along the response. Over pairs of samples of pi, p the probability that the first wins, the
    mean gradient of the first part is minus that of the win rate over the policy as it is. The
    nudge eps adds a constant to what every sample has won; because E_pi grad log pi = 0, it drops
    out of the mean gradient, and of one sample it raises the probability by itself.

    The anchor is the caller's, for example a moving average of the policy's parameters
    (`optax.incremental_update`).

    Source: Asghari et al., Efficient Exploration at Scale, https://arxiv.org/abs/2603.17378, as
    other texts report it.

    Args:
      log_probs: `[...]`, log pi of samples drawn from pi, nats a document.
      win_probs: `[...]`, p, the probability by a reward model that the sample is chosen over
        another one, from 0 to 1; no gradient passes.
      anchor_kls: `[...]`, nats a document, with its gradient: `forward_kl_loss` of the anchor's
        logits and the policy's along the sample.
      beta: the weight of the KL, >= 0.
      nudge: eps >= 0.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_equal_shape([log_probs, win_probs, anchor_kls])
    win_probs = at_least_float32(win_probs)
    is_share = (win_probs >= 0) & (win_probs <= 1)  # false for NaN
    checkify.debug_check(
        jnp.all(is_share),
        "win_probs must be from 0 to 1, but {count} are not",
        count=jnp.sum(~is_share),
    )
    gain = reinforce_loss(log_probs, win_probs + nudge, jnp.asarray(0.5, win_probs.dtype))
    return gain + beta * at_least_float32(anchor_kls)
