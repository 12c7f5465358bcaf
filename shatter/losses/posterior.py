"""KL-regularised RL as approximating a posterior, and the sampled KL estimators."""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import expectation, kl_divergence
from shatter.types import Array


def posterior_loss(
    log_probs: Array, ref_log_probs: Array, rewards: Array, *, beta: float | Array
) -> Array:
    """Score-function loss of the KL-regularised posterior objective, per sample of the policy.

    Its value is `-(r - beta (log pi - log p0))`, its gradient `-(r - beta (log pi - log p0)) grad
    log pi`. So over samples of pi the mean estimates `-J_KL` and the mean gradient `-grad J_KL`,
    both without bias, `J_KL = E_pi r - beta KL(pi || p0) = beta log Z - beta KL(pi || p*)`,
    `p*(x) = p0(x) exp(r(x) / beta) / Z`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275.

    Args:
      log_probs: `[...]`, log pi of samples drawn from pi, nats a document.
      ref_log_probs: `[...]`, log p0 of the same samples, nats; no gradient passes.
      rewards: `[...]`, r of the same samples; no gradient passes.
      beta: KL coefficient.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs, rewards])
    score = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))  # 1, with the gradient of log pi
    gain = rewards - beta * (log_probs - ref_log_probs)
    return -jax.lax.stop_gradient(gain) * score


def exact_posterior_loss(
    log_probs: Array, ref_log_probs: Array, rewards: Array, *, beta: float | Array
) -> Array:
    """Minus the KL-regularised posterior objective, exact over an enumerated space.

    `-J_KL = -sum_x pi(x) r(x) + beta KL(pi || p0)`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275.

    Args:
      log_probs: `[..., D]`, log pi of every document, nats.
      ref_log_probs: `[..., D]`, log p0 of every document, nats.
      rewards: `[..., D]`.
      beta: KL coefficient.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs, rewards])
    return beta * kl_divergence(log_probs, ref_log_probs) - expectation(log_probs, rewards)


def kl_k1(log_probs: Array, ref_log_probs: Array) -> Array:
    """KL(policy || reference) from samples of the policy: `log pi - log p0`.

    Unbiased in value. Differentiated as it stands, without a score term, its expected gradient is
    0, not that of any KL: do not train on it alone.

    Source: Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Args:
      log_probs: `[...]`, log pi of samples of pi, nats.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.

    Returns:
      `[...]`, nats; may be negative.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs])
    return log_probs - ref_log_probs


def kl_k2(log_probs: Array, ref_log_probs: Array) -> Array:
    """Half the squared log-ratio, `(log pi - log p0)^2 / 2`, from samples of the policy.

    Biased as a value of KL(policy || reference); its expected gradient without a score term is
    exactly `grad KL(policy || reference)`: the one to train on.

    Source: Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Args:
      log_probs: `[...]`, log pi of samples of pi, nats.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.

    Returns:
      `[...]`, nats, >= 0.
    """
    return 0.5 * jnp.square(kl_k1(log_probs, ref_log_probs))


def kl_k3(log_probs: Array, ref_log_probs: Array) -> Array:
    """`p0 / pi - 1 + log pi - log p0` from samples of the policy.

    Unbiased as a value of KL(policy || reference) and never negative; its expected gradient without
    a score term is that of the OTHER direction, `grad KL(reference || policy)`.

    Source: Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Args:
      log_probs: `[...]`, log pi of samples of pi, nats.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.

    Returns:
      `[...]`, nats, >= 0.
    """
    log_ratio = -kl_k1(log_probs, ref_log_probs)
    return jnp.expm1(log_ratio) - log_ratio
