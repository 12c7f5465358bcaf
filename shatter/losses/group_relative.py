"""GRPO: advantages relative to the samples of a prompt, and its loss."""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import at_least_float32, bounded_exp, finite_logs, masked_sum
from shatter.types import Array


def grpo_advantages(rewards: Array, deviations: Array | None = None) -> Array:
    """Returns the advantages of GRPO: rewards less their mean over the samples of a prompt, scaled.

    `A_k = (r_k - mean_j r_j) / (deviation + 1e-4)`. The mean looks at sample k itself, so without
    the division the expected gradient is (K - 1) / K times that of the mean reward. Division by the
    deviation of a group weights prompts by how much their rewards agree; what it maximises is no
    longer the mean reward over prompts.

    Source: Shao et al., DeepSeekMath, section 4.1.2, https://arxiv.org/abs/2402.03300; the 1e-4 as
    in TRL.

    Args:
      rewards: `[..., K]`, of K samples of one prompt; no gradient passes.
      deviations: broadcastable to `[..., K]`, what to divide by; None = the standard deviation of
        each group, with K - 1 in the denominator.

    Returns:
      `[..., K]`.

    Raises:
      AssertionError: if K < 2.
    """
    if rewards.ndim < 1 or rewards.shape[-1] < 2:
        raise AssertionError(
            "a group needs at least two samples of a prompt: expected rewards [..., K] with "
            f"K >= 2, found shape {rewards.shape}; draw more samples"
        )
    rewards = jax.lax.stop_gradient(at_least_float32(rewards))
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if deviations is None:
        squares = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
        deviations = jnp.sqrt(squares / (rewards.shape[-1] - 1))
    return centred / (deviations + 1e-4)


def grpo_loss(
    token_log_probs: Array,
    old_token_log_probs: Array,
    ref_token_log_probs: Array,
    advantages: Array,
    mask: Array,
    *,
    beta: float | Array,
    clip: float | Array = 0.2,
    clip_high: float | Array | None = None,
) -> Array:
    """Returns the loss of GRPO, summed over the tokens of a response.

    `sum_t -min(rho_t A, clip(rho_t, 1 - eps, 1 + eps_high) A) + beta (p0 / pi - 1 - log p0 / pi)_t`
    with rho = pi / old. Where pi is old, the gradient of the first term is `-A grad log pi`, and
    that of the second is in expectation the gradient of KL(reference || policy) at every prefix
    that was sampled, not of the KL of `posterior_loss`. Its means over tokens are the caller's:
    divided by a constant it is that of Dr. GRPO, by each length that of GRPO.

    With document log-probs on an axis T of one, and beta 0, it is PPO's surrogate of documents.

    Source: Shao et al., DeepSeekMath, equations 3 and 4, https://arxiv.org/abs/2402.03300; eps_high
    and sums over tokens: Yu et al., DAPO, https://arxiv.org/abs/2503.14476; division by a constant:
    Liu et al., Understanding R1-Zero-Like Training, https://arxiv.org/abs/2503.20783.

    Args:
      token_log_probs: `[..., T]`, log pi of sampled tokens, nats.
      old_token_log_probs: `[..., T]`, under the model that drew them; no gradient passes.
      ref_token_log_probs: `[..., T]`, log p0 of the same tokens; no gradient passes.
      advantages: `[...]`, of the documents; no gradient passes.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.
      beta: KL coefficient, >= 0.
      clip: eps.
      clip_high: eps_high; None = eps.

    Returns:
      `[...]`; 0 where the mask is empty. A ratio is at most e^80 in float32 and e^701 in float64,
      in value and gradient; the gradient of a clipped ratio is 0.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    own, old, ref = token_log_probs, old_token_log_probs, ref_token_log_probs
    chex.assert_type([own, old, ref, mask], [float, float, float, bool])
    chex.assert_equal_shape([own, old, ref, mask])
    chex.assert_equal_shape([own[..., 0], advantages])
    own, old, ref = (jnp.where(mask, finite_logs(logs), 0.0) for logs in (own, old, ref))
    old, ref = jax.lax.stop_gradient((old, ref))
    beta = jnp.broadcast_to(beta, advantages.shape)[..., None]
    advantages = jax.lax.stop_gradient(at_least_float32(advantages))[..., None]
    ratios = bounded_exp(own - old)
    clipped = jnp.clip(ratios, 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    surrogate = -jnp.minimum(ratios * advantages, clipped * advantages)
    penalty = bounded_exp(ref - own) - 1.0 - (ref - own)  # 0 outside the mask
    return masked_sum(surrogate + beta * penalty, mask)
