"""Policy gradients: REINFORCE, leave-one-out baselines, and the parts of PPO."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import (
    assert_positive,
    at_least_float32,
    bounded_exp,
    finite_logs,
    masked_mean,
)
from shatter.types import Array


def reinforce_loss(log_probs: Array, rewards: Array, baselines: float | Array = 0.0) -> Array:
    """Returns the loss of REINFORCE: the score-function loss of a reward, per sample of the policy.

    Its value is `-(r - b)` and its gradient `-(r - b) grad log pi`. Over samples of pi the mean
    gradient is `-grad E_pi r` for any baseline b that does not depend on the sample. The optimum of
    a reward alone is a point mass on the best document. With `r - beta (log pi - log p0)` in the
    place of r this is `posterior_loss`, the KL-regularised objective.

    Source: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning (1992), https://doi.org/10.1007/BF00992696.

    Args:
      log_probs: `[...]`, log pi of samples drawn from pi, nats a document.
      rewards: `[...]`; no gradient passes.
      baselines: `[...]` or a number; no gradient passes.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type(log_probs, float)
    chex.assert_equal_shape([log_probs, rewards])
    checkify.debug_check(
        jnp.all(jnp.isfinite(rewards)),
        "the reward, including its KL penalty, is not finite at {count} of the samples",
        count=jnp.sum(~jnp.isfinite(rewards)),
    )
    chex.assert_is_broadcastable(jnp.shape(baselines), log_probs.shape)
    log_probs = finite_logs(log_probs)
    rewards, baselines = at_least_float32(rewards), at_least_float32(baselines)
    score = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))  # 1, with the gradient of log pi
    return -jax.lax.stop_gradient(rewards - baselines) * score


def rloo_loss(log_probs: Array, rewards: Array) -> Array:
    """Returns the loss of REINFORCE with the mean reward of the other samples as the baseline.

    `b_k = sum_{j != k} r_j / (K - 1)` does not depend on sample k, so the gradient is unbiased.

    Source: Kool, van Hoof, Welling, Buy 4 REINFORCE Samples, Get a Baseline for Free! (2019),
    https://openreview.net/forum?id=r1lgTGL5DE; Ahmadian et al., Back to Basics,
    https://arxiv.org/abs/2402.14740.

    Args:
      log_probs: `[..., K]`, log pi of K samples of one prompt, nats a document.
      rewards: `[..., K]`, including the KL penalty if there is one; no gradient passes.

    Returns:
      `[..., K]`.

    Raises:
      AssertionError: if the shapes differ, the log-probs are not floating, or K < 2.
    """
    chex.assert_equal_shape([log_probs, rewards])
    if log_probs.ndim < 1 or log_probs.shape[-1] < 2:
        raise AssertionError(
            "a leave-one-out baseline needs at least two samples of a prompt: expected log_probs "
            f"[..., K] with K >= 2, found shape {log_probs.shape}; draw more samples"
        )
    rewards = at_least_float32(rewards)
    others = jnp.sum(rewards, axis=-1, keepdims=True) - rewards
    return reinforce_loss(log_probs, rewards, others / (rewards.shape[-1] - 1))


def kl_penalised_rewards(
    token_log_probs: Array,
    ref_token_log_probs: Array,
    scores: Array,
    mask: Array,
    *,
    beta: float | Array,
) -> Array:
    """Returns RLHF's reward of every token: a KL penalty, plus the score at the last token.

    `-beta (log pi - log p0)_t + score [t is last]`. The undiscounted sum over a document is the
    gain of `posterior_loss`.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences, equation 2,
    https://arxiv.org/abs/1909.08593.

    Args:
      token_log_probs: `[..., T]`, log pi of sampled tokens, nats.
      ref_token_log_probs: `[..., T]`, log p0 of the same tokens, nats.
      scores: `[...]`, the (learned) reward of the documents.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.
      beta: KL coefficient, >= 0.

    Returns:
      `[..., T]`; 0 outside the mask; no gradient passes.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([token_log_probs, ref_token_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([token_log_probs, ref_token_log_probs, mask])
    chex.assert_equal_shape([token_log_probs[..., 0], scores])
    log_probs, ref_log_probs = map(finite_logs, (token_log_probs, ref_token_log_probs))
    log_ratio = jnp.where(mask, log_probs, 0.0) - jnp.where(mask, ref_log_probs, 0.0)
    scores = at_least_float32(scores)
    num_left = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]  # this token included
    is_last = mask & (num_left == 1)
    beta = jnp.broadcast_to(beta, scores.shape)[..., None]
    rewards = jnp.where(is_last, scores[..., None], 0.0) - beta * log_ratio
    return jax.lax.stop_gradient(rewards)


def generalised_advantages(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    discount: float | Array = 1.0,
    decay: float | Array = 0.95,
) -> Array:
    """Returns generalised advantage estimates of the tokens of a response, computed by rlax.

    `A_t = sum_u (gamma lambda)^(u - t) (r_u + gamma V_(u+1) - V_u)` over the response's tokens
    u >= t, with V = 0 after the last one.

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, equation 16, https://arxiv.org/abs/1506.02438.

    Args:
      rewards: `[..., T]`, of choosing token t.
      values: `[..., T]`, of the state in which token t is chosen; no gradient passes.
      mask: bool `[..., T]`, true on the response's tokens, EOS included, which must be contiguous.
      discount: gamma.
      decay: lambda; 1 = Monte Carlo returns minus values, 0 = one-step temporal differences.

    Returns:
      `[..., T]`; 0 outside the mask. The targets of the value function are advantages plus values.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ImportError: if rlax is not installed.
    """
    chex.assert_type([rewards, values, mask], [float, float, bool])
    chex.assert_equal_shape([rewards, values, mask])
    rlax = _rlax()

    def of_one_response(rewards: Array, values: Array, mask: Array) -> Array:
        values = jnp.append(values, 0.0)
        goes_on = jnp.append(mask[1:], False).astype(values.dtype)
        return rlax.truncated_generalized_advantage_estimation(
            rewards, discount * goes_on, decay, values, stop_target_gradients=True
        )

    counted = [jnp.where(mask, at_least_float32(array), 0.0) for array in (rewards, values)]
    lifted = jnp.vectorize(of_one_response, signature="(t),(t),(t)->(t)")
    return jnp.where(mask, lifted(*counted, mask), 0.0)


def whiten(values: Array, mask: Array) -> Array:
    """Returns the values under a mask, centred and scaled to mean 0 and standard deviation 1.

    Args:
      values: `[..., T]`, for example advantages; mean and deviation are over all axes.
      mask: bool `[..., T]`, true on the values that count.

    Returns:
      `[..., T]`; 0 outside the mask. All are 0 if the values are equal, or if in float32 they
      spread over more than 1e19, because the square overflows.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([values, mask], [float, bool])
    chex.assert_equal_shape([values, mask])
    centred = jnp.where(mask, at_least_float32(values), 0.0)
    for _ in range(2):  # the second pass removes the rounding error of the first mean
        centred = jnp.where(mask, centred - masked_mean(centred.ravel(), mask.ravel()), 0.0)
    variance = masked_mean(jnp.square(centred).ravel(), mask.ravel())
    return centred * jax.lax.rsqrt(variance + 1e-8)


def ppo_loss(
    token_log_probs: Array,
    behaviour_token_log_probs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip: float | Array = 0.2,
) -> Array:
    """Returns PPO's clipped surrogate loss, summed over the tokens of a response, by rlax.

    `-sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)`, rho = pi / behaviour. On-policy its
    gradient is `-sum_t A_t grad log pi_t`.

    Source: Schulman et al., Proximal Policy Optimization Algorithms, equation 7,
    https://arxiv.org/abs/1707.06347.

    Args:
      token_log_probs: `[..., T]`, log pi of the tokens, nats.
      behaviour_token_log_probs: `[..., T]`, log-probs under the law that the tokens were drawn
        from; no gradient passes.
      advantages: `[..., T]`; no gradient passes.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.
      clip: eps.

    Returns:
      `[...]`; 0 where the mask is empty. A ratio is at most e^80 in float32 and e^701 in float64,
      in value and gradient; the gradient of a clipped ratio is 0.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ImportError: if rlax is not installed.
    """
    chex.assert_type([token_log_probs, behaviour_token_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([token_log_probs, behaviour_token_log_probs, advantages, mask])
    rlax = _rlax()
    log_probs, behaviour = map(finite_logs, (token_log_probs, behaviour_token_log_probs))
    behaviour = jax.lax.stop_gradient(jnp.where(mask, behaviour, 0.0))
    # Bounded, because the gradient of a clipped ratio is 0 times that of the exponential, and 0
    # times infinity would be NaN.
    ratios = bounded_exp(jnp.where(mask, log_probs, 0.0) - behaviour)
    advantages = at_least_float32(advantages)

    def of_one_response(ratios: Array, advantages: Array) -> Array:
        return ratios.size * rlax.clipped_surrogate_pg_loss(ratios, advantages, clip)  # a mean

    return jnp.vectorize(of_one_response, signature="(t),(t)->()")(
        ratios, jnp.where(mask, advantages, 0.0)
    )


def value_loss(
    values: Array,
    targets: Array,
    mask: Array,
    *,
    old_values: Array | None = None,
    clip: float | Array | None = None,
) -> Array:
    """Returns half the squared error of a value function, summed over the tokens of a response.

    With old values it is `max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) / 2` at each
    token, whose gradient is 0 where V has moved from V_old towards R by more than eps.

    Source: without old values Schulman et al., Proximal Policy Optimization Algorithms, equation 9,
    https://arxiv.org/abs/1707.06347; with them Engstrom et al., Implementation Matters in Deep
    Policy Gradients, section 3, https://arxiv.org/abs/2005.12729.

    Args:
      values: `[..., T]`.
      targets: `[..., T]`, advantages plus the values that they were computed with; no gradient
        passes.
      mask: bool `[..., T]`, true on the response's tokens.
      old_values: `[..., T]`, of the value function before the updates; no gradient passes.
      clip: eps, given if `old_values` are.

    Returns:
      `[...]`; 0 where the mask is empty.

    Raises:
      AssertionError: if the shapes or types do not fit, or `clip` is given without `old_values` or
        these without `clip`.
    """
    chex.assert_type([values, targets, mask], [float, float, bool])
    chex.assert_equal_shape([values, targets, mask])
    counted = lambda array: jnp.where(mask, at_least_float32(array), 0.0)
    values, targets = counted(values), jax.lax.stop_gradient(counted(targets))
    squares = jnp.square(values - targets)
    if (old_values is None) != (clip is None):
        raise AssertionError(
            "value_loss clips to within clip of old_values: expected both or neither, found "
            f"{'clip' if old_values is None else 'old_values'} alone"
        )
    if old_values is not None and clip is not None:
        chex.assert_type(old_values, float)
        chex.assert_equal_shape([values, old_values])
        old_values = jax.lax.stop_gradient(counted(old_values))
        near = jnp.clip(values, old_values - clip, old_values + clip)
        squares = jnp.maximum(squares, jnp.square(near - targets))
    return 0.5 * jnp.sum(squares, axis=-1)


def adapt_beta(
    beta: float | Array,
    kl: float | Array,
    *,
    target: float | Array,
    num_samples: int,
    horizon: float | Array,
) -> Array:
    """Returns the adaptive KL coefficient after a batch, which rises if the KL is above its target.

    `beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)`.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences, section 2.2,
    https://arxiv.org/abs/1909.08593; the gain n / horizon as in their published code.

    Args:
      beta: KL coefficient, > 0.
      kl: KL(policy || reference) of the batch, nats a document.
      target: the wanted KL, nats, > 0.
      num_samples: n, number of documents in the batch.
      horizon: number of documents over which beta may change by a fifth; at least n.

    Returns:
      The next beta.

    Raises:
      ValueError: if the target or the horizon is not above 0.
    """
    assert_positive(target=target, horizon=horizon)
    beta, kl, target, horizon = map(at_least_float32, (beta, kl, target, horizon))
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return beta * (1.0 + error * num_samples / horizon)


def _rlax() -> Any:
    """Imports rlax on first use, because it is optional and slow: it imports distrax."""
    try:
        import rlax
    except ImportError as error:
        raise ImportError(
            "shatter.losses.ppo_loss and generalised_advantages need rlax, which cannot be "
            f"imported ({error}): pip install 'shatter-lm[rl]'"
        ) from error
    return rlax
