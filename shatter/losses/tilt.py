"""Utilities of responses as a tilt over the frozen model, for the losses of ILHF."""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import LOG_ZERO, at_least_float32, finite_logs
from shatter.types import Array


def tilted_utilities(
    log_probs: Array, ref_log_probs: Array, *, base_share: float | Array = 0.0
) -> Array:
    """Returns utilities of responses as a tilt over the frozen model: `log pi - (1 - s) log p0`.

    If people choose by Luce's rule on u, `ilhf_loss` of these utilities with enough choices has the
    minimum `pi(x) = p0(x)^(1 - s) exp(u(x)) / Z`, that is
    `shatter.evaluation.posterior_optimum((1 - s) * log_p0, u, beta=1)`:

    - s = 1 is the literal form, log pi, which ends in exp(u) / Z. What people say nothing about
      becomes uniform over texts, so that indifferent people undo the pretrained model.
    - s = 0 is the pure tilt, which ends in p0 exp(u) / Z: indifferent people leave p0 as it is, and
      KL(pi || p0) is at most r^2 / 8 where all u are within r nats of each other. Of pairs the loss
      is that of DPO at beta = 1.

    Choices cannot tell s: for every s some pi explains them equally well. It says what they mean
    for writing. To predict choices before there are any, s = 0 starts with even odds and s = 1 with
    those of p0, which for texts that p0 did not write are confident and wrong.

    Source: ours; s = 0 is the implicit reward of Rafailov et al., Direct Preference Optimization,
    https://arxiv.org/abs/2305.18290.

    Example:
      >>> import jax.numpy as jnp
      >>> from shatter import losses
      >>> log_probs, ref_log_probs = jnp.log(jnp.array([[0.2, 0.6], [0.1, 0.6]]))
      >>> utilities = losses.tilted_utilities(log_probs, ref_log_probs)  # log 2 and 0
      >>> round(float(losses.ilhf_loss(utilities, jnp.array(0))), 3)
      0.405

      That is -log(2/3).

    Args:
      log_probs: `[..., K]`, log pi of each response, summed over its tokens, nats; -inf = an empty
        slot.
      ref_log_probs: `[..., K]`, log p0 of the same responses; finite where log pi is.
      base_share: s, from 0 to 1.

    Returns:
      `[..., K]`, nats; empty slots stay empty, whatever log p0 is there.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if base_share is not in [0, 1].
    """
    if not isinstance(base_share, jax.Array) and not 0.0 <= base_share <= 1.0:
        raise ValueError(f"base_share must be in [0, 1], found {base_share}")
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs])
    log_probs = at_least_float32(log_probs)
    ref_log_probs = jnp.where(log_probs <= LOG_ZERO, 0.0, finite_logs(ref_log_probs))
    return log_probs - (1.0 - base_share) * ref_log_probs
