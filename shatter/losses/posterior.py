"""KL-regularised RL as the approximation of a posterior, and estimators of the KL from samples.

The target is `p*(x) = p0(x) exp(r(x) / beta) / Z`. Because `J_KL(pi) = E_pi r - beta KL(pi || p0)
= beta log Z - beta KL(pi || p*)`, maximising J_KL is variational inference of p*.
"""

import chex
import jax
import jax.numpy as jnp

from shatter.losses.reinforcement import reinforce_loss
from shatter.numerics import (
    assert_positive,
    at_least_float32,
    bounded_exp,
    expectation,
    finite_logs,
    kl_divergence,
    masked_sum,
)
from shatter.types import Array


def posterior_loss(
    log_probs: Array, ref_log_probs: Array, rewards: Array, *, beta: float | Array
) -> Array:
    """Returns the score-function loss of the KL-regularised objective, per sample of the policy.

    Its value is `-(r - beta (log pi - log p0))` and its gradient `-(r - beta (log pi - log p0))
    grad log pi`. Over samples of pi, the mean of the loss is an unbiased estimate of `-J_KL` and
    the mean of the gradients one of `-grad J_KL`, where `J_KL = E_pi r - beta KL(pi || p0)
    = beta log Z - beta KL(pi || p*)` and `p*(x) = p0(x) exp(r(x) / beta) / Z`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275.

    Args:
      log_probs: `[...]`, log pi of samples drawn from pi, nats a document.
      ref_log_probs: `[...]`, log p0 of the same samples, nats; no gradient passes.
      rewards: `[...]`, r of the same samples; no gradient passes.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    return reinforce_loss(log_probs, beta * elbo(log_probs, ref_log_probs, rewards, beta=beta))


def token_posterior_loss(
    token_log_probs: Array,
    ref_token_log_probs: Array,
    rewards: Array,
    mask: Array,
    *,
    beta: float | Array,
) -> Array:
    """Returns `posterior_loss` with a reward for every token and undiscounted rewards-to-go.

    The reward of every token is `-beta (log pi - log p0)`, plus r at the last one. The score of a
    token is weighted by the sum of the rewards from that token on,
    `G_t = r - beta sum_{u >= t} (log pi - log p0)_u`. The value is -G at the first token, as in
    `posterior_loss`. The expected gradient is `-grad J_KL` as well, but it has less variance,
    because the rewards of earlier tokens, which do not depend on a token, are left out.

    Source: Korbak, Perez, Buckley, https://arxiv.org/abs/2205.11275; reward-to-go: Sutton et al.,
    Policy Gradient Methods for Reinforcement Learning with Function Approximation (1999).

    Args:
      token_log_probs: `[..., T]`, log pi of the tokens of samples drawn from pi, nats.
      ref_token_log_probs: `[..., T]`, log p0 of the same tokens, nats; no gradient passes.
      rewards: `[...]`, r of the documents; no gradient passes.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    chex.assert_type([token_log_probs, ref_token_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([token_log_probs, ref_token_log_probs, mask])
    chex.assert_equal_shape([token_log_probs[..., 0], rewards])
    rewards = at_least_float32(rewards)
    log_probs = jnp.where(mask, finite_logs(token_log_probs), 0.0)
    log_ratio = log_probs - jnp.where(mask, finite_logs(ref_token_log_probs), 0.0)
    to_go = jnp.cumsum(log_ratio[..., ::-1], axis=-1)[..., ::-1]
    beta = jnp.broadcast_to(beta, rewards.shape)[..., None]
    gain = jax.lax.stop_gradient(rewards[..., None] - beta * to_go)
    # The value of this term is 0; its gradient is the score-function gradient.
    score = masked_sum(gain * (log_probs - jax.lax.stop_gradient(log_probs)), mask)
    return -gain[..., 0] - score


def elbo(log_probs: Array, ref_log_probs: Array, rewards: Array, *, beta: float | Array) -> Array:
    """Returns the evidence lower bound, per sample of the policy: `r / beta - (log pi - log p0)`.

    Its mean over samples of pi is `log Z - KL(pi || p*) = J_KL / beta`. It is at most log Z, the
    log evidence of `p(O = 1 | x) = exp(r(x) / beta)` under the prior p0. Do not differentiate it:
    like that of `kl_k1`, its expected gradient is 0. Train on `posterior_loss`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    section 3, https://arxiv.org/abs/2205.11275.

    Args:
      log_probs: `[...]`, log pi of samples drawn from pi, nats a document.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.
      rewards: `[...]`, r of the same samples.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs, rewards])
    log_ratio = finite_logs(log_probs) - finite_logs(ref_log_probs)
    return at_least_float32(rewards) / beta - log_ratio


def exact_posterior_loss(
    log_probs: Array, ref_log_probs: Array, rewards: Array, *, beta: float | Array
) -> Array:
    """Returns minus the KL-regularised objective, exact over an enumerated space.

    `-J_KL = -sum_x pi(x) r(x) + beta KL(pi || p0)`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275.

    Args:
      log_probs: `[..., D]`, log pi of every document, nats.
      ref_log_probs: `[..., D]`, log p0 of every document, nats.
      rewards: `[..., D]`.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs, rewards])
    return beta * kl_divergence(log_probs, ref_log_probs) - expectation(log_probs, rewards)


def kl_k1(log_probs: Array, ref_log_probs: Array) -> Array:
    """Returns the estimate k1 of KL(policy || reference) per sample: `log pi - log p0`.

    It is unbiased. Without a score-function term its expected gradient is 0, which is not the
    gradient of any KL: do not train on it alone.

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
    return finite_logs(log_probs) - finite_logs(ref_log_probs)


def kl_k2(log_probs: Array, ref_log_probs: Array) -> Array:
    """Returns the estimate k2 of KL(policy || reference) per sample: `(log pi - log p0)^2 / 2`.

    It is biased, but without a score-function term its expected gradient is exactly
    `grad KL(policy || reference)`: of the three estimates, this is the one to train on.

    Source: Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Args:
      log_probs: `[...]`, log pi of samples of pi, nats.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.

    Returns:
      `[...]`, nats, >= 0; in float32 it overflows to inf at log-ratios of 2.6e19 nats, with a
      finite gradient.
    """
    return 0.5 * jnp.square(kl_k1(log_probs, ref_log_probs))


def kl_k3(log_probs: Array, ref_log_probs: Array) -> Array:
    """Returns the estimate k3 of KL(policy || reference): `p0 / pi - 1 + log pi - log p0`.

    It is unbiased and never negative. Without a score-function term its expected gradient is that
    of the other direction, `grad KL(reference || policy)`.

    Source: Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Args:
      log_probs: `[...]`, log pi of samples of pi, nats.
      ref_log_probs: `[...]`, log p0 of the same samples, nats.

    Returns:
      `[...]`, nats, >= 0. A ratio p0 / pi is at most e^80 in float32 and e^701 in float64, in value
      and gradient.
    """
    log_ratio = -kl_k1(log_probs, ref_log_probs)
    near = jnp.expm1(jnp.minimum(log_ratio, 1.0))  # exp(x) - 1 would lose digits near 0
    excess = jnp.where(log_ratio < 1.0, near, bounded_exp(log_ratio) - 1.0)
    return excess - log_ratio
