"""Towards a target law by policy gradients: f-DPG over six divergences, and GDC.

A target p is given by log P, of which only `log_z` is needed besides. Samples come from pi itself
(on-policy) or from a proposal q (off-policy, weighed by pi / q). The slopes are f'(t) of
`D_f(pi || p) = E_p f(t)`, t = pi / p, as functions of log t.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, at_least_float32, bounded_exp, finite_logs
from shatter.types import Array, Params

_LARGEST = 40.0
"""Where a slope is a power of t, |log t| is held below it: e^80 is a float32, and what is farther
from a target is no closer to learning anything."""

Slope = Callable[[Array], Array]
"""`log t [...] -> f'(t) [...]`."""


def forward_kl_slope(log_t: Array) -> Array:
    """KL(p || pi): `f'(t) = -1 / t`. DPG and GDC.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return -jnp.exp(-_bounded(log_t))


def reverse_kl_slope(log_t: Array) -> Array:
    """KL(pi || p): `f'(t) = log t + 1`. KL-regularised RL.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return at_least_float32(log_t) + 1.0


def jensen_shannon_slope(log_t: Array) -> Array:
    """Twice the Jensen-Shannon divergence: `f'(t) = log(2 t / (1 + t))`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return jnp.log(2.0) + jax.nn.log_sigmoid(at_least_float32(log_t))


def total_variation_slope(log_t: Array) -> Array:
    """Total variation: `f'(t) = sign(log t) / 2`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return 0.5 * jnp.sign(at_least_float32(log_t))


def forward_chi_squared_slope(log_t: Array) -> Array:
    """Chi-squared of p from pi, `E_pi (p / pi - 1)^2`: `f'(t) = 1 - t^-2`.

    Args:
      log_t: `[...]`, log pi - log p.

    Returns:
      `[...]`.
    """
    return -jnp.expm1(-2.0 * _bounded(log_t))


def reverse_chi_squared_slope(log_t: Array) -> Array:
    """Chi-squared of pi from p, `E_p (pi / p - 1)^2`: `f'(t) = 2 (t - 1)`.

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
    """f-DPG: the score-function loss of an f-divergence from the policy to a target, per sample.

    Its gradient is `(pi / q) (f'(t) - b) grad log pi`, t = pi Z / P. Over samples of q (of pi,
    where no proposal is given) its mean is `grad D_f(pi || p)` for whatever constant b. The default
    b = f'(1) makes every term 0 where pi = p. For KL(p || pi) that is the baseline of DPG: up to
    the factor Z the gain is `P / pi - Z` on-policy and `P / q - Z pi / q` off-policy. The value is
    the weighed slope, not the divergence. A slope that is a power of t takes |log t| > 40 for 40; a
    term beyond e^80 in float32 (e^701 in float64), its sign apart, counts as that.

    Source: Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
    theorem 1 and table 1, https://arxiv.org/abs/2302.08215; the baselines: Korbak et al., On
    Reinforcement Learning and Distribution Matching, section 3,
    https://arxiv.org/abs/2206.00761.

    Args:
      log_probs: `[...]`, log pi of the samples, nats a document.
      target_log_probs: `[...]`, log P of the samples, unnormalised, nats; no gradient passes.
        Where the target has no mass (-inf or -1e30) only the slopes of KL(p || pi),
        Jensen-Shannon, total variation and the chi-squared of p from pi are finite.
      slope: f' as a function of log t, for example `forward_kl_slope`.
      log_z: log Z of the target, or an estimate of it, broadcast.
      proposal_log_probs: `[...]`, log q of the samples; None = they were drawn from pi.
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
    has_mass = ~(target_log_probs <= LOG_ZERO)  # a NaN has, so that it is seen
    log_t = jnp.where(has_mass, fixed - (target_log_probs - log_z), -LOG_ZERO)
    if baseline is None:
        baseline = slope(jnp.zeros((), log_t.dtype))
    chex.assert_is_broadcastable(jnp.shape(baseline), log_probs.shape)
    unbounded = slope(jnp.asarray(_LARGEST)) - slope(jnp.asarray(_LARGEST / 2.0)) > 1.0
    checkify.debug_check(
        ~unbounded | jnp.all(has_mass),
        "the target has no mass at {count} of the samples, where this divergence is infinite: use "
        "forward_kl_slope, jensen_shannon_slope, total_variation_slope or "
        "forward_chi_squared_slope",
        count=jnp.sum(~has_mass),
    )
    gain = slope(log_t) - baseline
    if proposal_log_probs is not None:
        chex.assert_type(proposal_log_probs, float)
        chex.assert_equal_shape([log_probs, proposal_log_probs])
        gain = _weighed(gain, fixed - finite_logs(proposal_log_probs))
    return jax.lax.stop_gradient(gain) * jnp.exp(log_probs - fixed)


def gdc_loss(
    log_probs: Array,
    target_log_probs: Array,
    proposal_log_probs: Array,
    *,
    log_z: float | Array = 0.0,
) -> Array:
    """Generation with distributional control: the cross-entropy of a target, by importance weights.

    `-(P / (Z q)) log pi` over samples of a proposal q: its mean is `KL(p || pi) + H(p)`, its mean
    gradient `grad KL(p || pi)`, that of `fdpg_loss` with `forward_kl_slope` and that proposal.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    algorithm 2, https://arxiv.org/abs/2012.11635.

    Args:
      log_probs: `[...]`, log pi of samples of q, nats a document.
      target_log_probs: `[...]`, log P of them, unnormalised, nats; -inf where the target has no
        mass; no gradient passes.
      proposal_log_probs: `[...]`, log q of them, nats; no gradient passes.
      log_z: log Z of the target or an estimate; it scales the loss.

    Returns:
      `[...]`, nats; 0 where the target has no mass. In float32 a weight P / (Z q) above e^80 (in
      float64 e^701) counts as that in the gradient, and a loss above it in the value.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
    """
    chex.assert_type([log_probs, target_log_probs, proposal_log_probs], float)
    chex.assert_equal_shape([log_probs, target_log_probs, proposal_log_probs])
    chex.assert_is_broadcastable(jnp.shape(log_z), log_probs.shape)
    log_probs, target_log_probs, proposal_log_probs = map(
        finite_logs, (log_probs, target_log_probs, proposal_log_probs)
    )
    has_mass = ~(target_log_probs <= LOG_ZERO)  # a NaN has, so that it is seen
    log_weights = target_log_probs - at_least_float32(log_z) - proposal_log_probs
    log_weights = jax.lax.stop_gradient(jnp.where(has_mass, log_weights, LOG_ZERO))
    return -_weighed(jnp.where(has_mass, log_probs, 0.0), log_weights)


def adapt_proposal(
    proposal: Params, policy: Params, *, proposal_kl: Array, policy_kl: Array
) -> Params:
    """The proposal of GDC after a while: the policy, once it is closer to the target.

    Source: Khalifa, Elsahar, Dymetman, A Distributional Approach to Controlled Text Generation,
    algorithm 2, https://arxiv.org/abs/2012.11635.

    Args:
      proposal: parameters of q.
      policy: parameters of pi, of the same shapes.
      proposal_kl: `[]`, estimated KL(p || q), nats, as `shatter.inference.importance_kl` gives it.
      policy_kl: `[]`, estimated KL(p || pi), nats.

    Returns:
      The policy where its KL is smaller, else the proposal; a NaN changes nothing.
    """
    closer = policy_kl < proposal_kl
    return jax.tree.map(lambda q, pi: jnp.where(closer, pi, q), proposal, policy)


def _weighed(values: Array, log_weights: Array) -> Array:
    """`exp(log_weights) values`, held where `bounded_exp` is, with the slope of a bounded weight.

    The weight comes in two halves, so that neither overflows where the product does not.
    """
    largest = bounded_exp(jnp.full((), jnp.inf, values.dtype))
    half = jnp.exp(jnp.minimum(0.5 * log_weights, jnp.log(largest)))
    product = jnp.clip(values * half * half, -largest, largest)
    slope = bounded_exp(log_weights) * (values - jax.lax.stop_gradient(values))  # 0 in value
    return jax.lax.stop_gradient(product) + slope


def _bounded(log_t: Array) -> Array:
    return jnp.clip(at_least_float32(log_t), -_LARGEST, _LARGEST)
