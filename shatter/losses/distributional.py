"""Policy-gradient losses that move a policy to a target law: f-DPG over six divergences, and GDC.

The target p is given by the unnormalised log P and its log_z, or an estimate of it. Samples come
from pi itself (on-policy) or from a proposal q (off-policy, weighted by pi / q). A slope is f'(t)
of the divergence `D_f(pi || p) = E_p f(t)`, t = pi / p, as a function of log t.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32, bounded_exp, finite_logs
from shatter.types import Array, Params

_LARGEST = 40.0
"""The bound on |log t| in slopes that are powers of t: the square of e^40 is a float32, and beyond
it a larger slope teaches nothing more."""

Slope = Callable[[Array], Array]
"""The derivative of a divergence: `log t [...] -> f'(t) [...]`."""


def forward_kl_slope(log_t: Array) -> Array:
    """Returns the slope of KL(p || pi), which DPG and GDC descend: `f'(t) = -1 / t`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return -jnp.exp(-_bounded(log_t))


def reverse_kl_slope(log_t: Array) -> Array:
    """Returns the slope of KL(pi || p), which KL-regularised RL descends: `f'(t) = log t + 1`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return at_least_float32(log_t) + 1.0


def jensen_shannon_slope(log_t: Array) -> Array:
    """Returns the slope of twice the Jensen-Shannon divergence: `f'(t) = log(2 t / (1 + t))`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return jnp.log(2.0) + jax.nn.log_sigmoid(at_least_float32(log_t))


def total_variation_slope(log_t: Array) -> Array:
    """Returns the slope of the total variation: `f'(t) = sign(log t) / 2`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return 0.5 * jnp.sign(at_least_float32(log_t))


def forward_chi_squared_slope(log_t: Array) -> Array:
    """Returns the slope of the chi-squared of p from pi, `E_pi (p / pi - 1)^2`: `f' = 1 - t^-2`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return -jnp.expm1(-2.0 * _bounded(log_t))


def reverse_chi_squared_slope(log_t: Array) -> Array:
    """Returns the slope of the chi-squared of pi from p, `E_p (pi / p - 1)^2`: `f' = 2 (t - 1)`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return 2.0 * jnp.expm1(_bounded(log_t))


def fdpg_loss(
    log_probs: Array,
    target_log_probs: Array,
    *,
    slope: Slope,
    log_z: float | Array = 0.0,
    proposal_log_probs: Array | None = None,
    baseline: float | Array | None = None,
) -> Array:
    """Returns the score-function loss of f-DPG per sample, for an f-divergence to a target.

    Its gradient is `(pi / q) (f'(t) - b) grad log pi`, t = pi Z / P. Over samples of q (of pi, if
    there is no proposal) the mean of the gradients is `grad D_f(pi || p)` for any constant b. The
    default b = f'(1) makes every term 0 at pi = p. For KL(p || pi) this is the baseline of DPG: up
    to the factor Z, the gain is `P / pi - Z` on-policy and `P / q - Z pi / q` off-policy. The value
    is the weighted slope, not the divergence. Slopes that are powers of t bound |log t| by 40, and
    the size of a term is at most e^80 in float32 and e^701 in float64.

    Source: Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
    theorem 1 and table 1, https://arxiv.org/abs/2302.08215; the baselines: Korbak et al., On
    Reinforcement Learning and Distribution Matching, section 3,
    https://arxiv.org/abs/2206.00761.

    Args:
      log_probs: `[...]`, log pi of the samples, nats a document.
      target_log_probs: `[...]`, log P of the samples, unnormalised, nats; no gradient passes. At
        samples where the target has no mass (-inf or -1e30), only the slopes of KL(p || pi),
        Jensen-Shannon, total variation and the chi-squared of p from pi are finite.
      slope: f' as a function of log t, for example `forward_kl_slope`.
      log_z: log Z of the target, or an estimate of it, broadcast.
      proposal_log_probs: `[...]`, log q of the samples; None = the samples were drawn from pi.
      baseline: b, in units of f'; None = f'(1), 0 = none.

    Returns:
      `[...]`.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, target_log_probs], float)
    chex.assert_equal_shape([log_probs, target_log_probs])
    chex.assert_is_broadcastable(jnp.shape(log_z), log_probs.shape)
    log_probs, target_log_probs = map(finite_logs, (log_probs, target_log_probs))
    log_z = at_least_float32(log_z)
    fixed = jax.lax.stop_gradient(log_probs)
    has_mass = ~(target_log_probs <= LOG_ZERO)  # true for NaN, which then shows in the result
    log_t = jnp.where(has_mass, fixed - (target_log_probs - log_z), -LOG_ZERO)
    if baseline is None:
        baseline = slope(jnp.zeros((), log_t.dtype))
    chex.assert_is_broadcastable(jnp.shape(baseline), log_probs.shape)
    unbounded = slope(jnp.asarray(_LARGEST)) - slope(jnp.asarray(_LARGEST / 2.0)) > 1.0
    checkify.debug_check(
        ~unbounded | jnp.all(has_mass),
        "the target has no mass at {count} of the samples, so this divergence is infinite: use "
        "forward_kl_slope, jensen_shannon_slope, total_variation_slope or "
        "forward_chi_squared_slope",
        count=jnp.sum(~has_mass),
    )
    gain = slope(log_t) - baseline
    if proposal_log_probs is not None:
        chex.assert_type(proposal_log_probs, float)
        chex.assert_equal_shape([log_probs, proposal_log_probs])
        gain = _weighted(gain, fixed - finite_logs(proposal_log_probs))
    return jax.lax.stop_gradient(gain) * jnp.exp(log_probs - fixed)


def gdc_loss(
    log_probs: Array,
    target_log_probs: Array,
    proposal_log_probs: Array,
    *,
    log_z: float | Array = 0.0,
) -> Array:
    """Returns the loss of GDC: the cross-entropy of a target, estimated by importance weights.

    `-(P / (Z q)) log pi` at samples of a proposal q. Its mean is `KL(p || pi) + H(p)` and its mean
    gradient `grad KL(p || pi)`, like that of `fdpg_loss` with `forward_kl_slope` and the same
    proposal.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    algorithm 2, https://arxiv.org/abs/2012.11635.

    Args:
      log_probs: `[...]`, log pi of samples of q, nats a document.
      target_log_probs: `[...]`, log P of the samples, unnormalised, nats; -inf where the target has
        no mass; no gradient passes.
      proposal_log_probs: `[...]`, log q of the samples, nats; no gradient passes.
      log_z: log Z of the target or an estimate of it; it scales the loss.

    Returns:
      `[...]`, nats; 0 where the target has no mass. The weight P / (Z q) in the gradient, and the
      loss in the value, are at most e^80 in float32 and e^701 in float64.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, target_log_probs, proposal_log_probs], float)
    chex.assert_equal_shape([log_probs, target_log_probs, proposal_log_probs])
    chex.assert_is_broadcastable(jnp.shape(log_z), log_probs.shape)
    log_probs, target_log_probs, proposal_log_probs = map(
        finite_logs, (log_probs, target_log_probs, proposal_log_probs)
    )
    has_mass = ~(target_log_probs <= LOG_ZERO)  # true for NaN, which then shows in the result
    log_weights = target_log_probs - at_least_float32(log_z) - proposal_log_probs
    log_weights = jax.lax.stop_gradient(jnp.where(has_mass, log_weights, LOG_ZERO))
    return -_weighted(jnp.where(has_mass, log_probs, 0.0), log_weights)


def adapt_proposal(
    proposal: Params, policy: Params, *, proposal_kl: Array, policy_kl: Array
) -> Params:
    """Returns the next proposal of GDC: the policy, if that is closer to the target.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    algorithm 2, https://arxiv.org/abs/2012.11635.

    Args:
      proposal: parameters of q.
      policy: parameters of pi, of the same shapes.
      proposal_kl: `[]`, KL(p || q), nats, estimated by `shatter.inference.importance_kl`.
      policy_kl: `[]`, KL(p || pi), nats, estimated likewise.

    Returns:
      The policy's parameters if its KL is smaller; the proposal's otherwise, or if a KL is NaN.
    """
    closer = policy_kl < proposal_kl
    return jax.tree.map(lambda q, pi: jnp.where(closer, pi, q), proposal, policy)


def _weighted(values: Array, log_weights: Array) -> Array:
    """Returns `exp(log_weights) values`, bounded as `bounded_exp` is.

    The gradient is that of the values times a bounded weight. The value is multiplied by the root
    of the weight twice, so that it overflows only where the product does.
    """
    largest = bounded_exp(jnp.full((), jnp.inf, values.dtype))
    half = jnp.exp(jnp.minimum(0.5 * log_weights, jnp.log(largest)))
    product = jnp.clip(values * half * half, -largest, largest)
    # The value of this term is 0; it carries the gradient.
    slope = bounded_exp(log_weights) * (values - jax.lax.stop_gradient(values))
    return jax.lax.stop_gradient(product) + slope


def _bounded(log_t: Array) -> Array:
    return jnp.clip(at_least_float32(log_t), -_LARGEST, _LARGEST)
