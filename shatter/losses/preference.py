"""Losses of direct methods, which train a policy on comparisons without a reward model.

They are functions of the log-ratio D(x) = log pi(x) - log p0(x) of the chosen (w) and the rejected
(l) response, except SLiC, which uses log pi alone. `shatter.evaluation` has the optima that have a
closed form: `dpo_optimum` and `ipo_optimum`.
"""

import chex
import jax
import jax.numpy as jnp

from shatter.numerics import assert_positive, finite_logs
from shatter.types import Array


def dpo_loss(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: float | Array,
    label_smoothing: float | Array = 0.0,
) -> Array:
    """Returns the loss of direct preference optimisation: a reward model with the reward `beta D`.

    `-(1 - eps) log sigmoid(beta (D_w - D_l)) - eps log sigmoid(-beta (D_w - D_l))`. With choices of
    a population of density q and eps = 0 its optimum is `p0 q^(1 / beta) / Z`, not q.

    Source: Rafailov et al., Direct Preference Optimization, equation 7,
    https://arxiv.org/abs/2305.18290; eps: Mitchell, A note on DPO with noisy preferences,
    https://ericmitchell.ai/cdpo.pdf.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      beta: KL coefficient, > 0.
      label_smoothing: eps, the assumed share of flipped labels, 0 <= eps < 1/2.

    Returns:
      `[...]`, nats; log 2 where pi = p0.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0, or eps is not in its range.
    """
    assert_positive(beta=beta)
    if not isinstance(label_smoothing, jax.Array) and not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 1/2), found {label_smoothing}")
    margin = beta * _margin(
        chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs
    )
    agree, disagree = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1.0 - label_smoothing) * agree - label_smoothing * disagree


def ipo_loss(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: float | Array,
) -> Array:
    """Returns the loss of identity preference optimisation, which has a finite target margin.

    `(D_w - D_l - 1 / (2 beta))^2`. If x is chosen beside y with probability P, the optimum is
    `D_x - D_y = (P - 1/2) / beta`, which is finite even at P = 1, where DPO's margin diverges.

    Source: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
    Preferences, equation 17, https://arxiv.org/abs/2310.12036.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`, squared nats; in float32 it overflows to inf at margins of 1.8e19 nats.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    margin = _margin(
        chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs
    )
    return jnp.square(margin - 0.5 / beta)


def slic_loss(chosen_log_probs: Array, rejected_log_probs: Array, *, delta: float | Array) -> Array:
    """Returns the loss of sequence likelihood calibration: a hinge on the log-probs themselves.

    `max(0, delta - (log pi(x_w) - log pi(x_l)))`. The paper adds a cross-entropy towards the
    reference, which is `sft_loss` on samples of p0. Without it, the expected loss of a pair is
    smallest at a log-ratio of +-delta, however large the majority is: it does not learn shares.

    Source: Zhao et al., SLiC-HF, equation 1, https://arxiv.org/abs/2305.10425.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      delta: the wanted margin, nats, > 0.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if delta is not above 0.
    """
    assert_positive(delta=delta)
    chex.assert_type([chosen_log_probs, rejected_log_probs], float)
    chex.assert_equal_shape([chosen_log_probs, rejected_log_probs])
    return jax.nn.relu(delta - (finite_logs(chosen_log_probs) - finite_logs(rejected_log_probs)))


def xpo_loss(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    sampled_log_probs: Array,
    *,
    beta: float | Array,
    alpha: float | Array,
) -> Array:
    """Returns the loss of exploratory preference optimisation: DPO plus optimism.

    `dpo_loss + alpha log pi(x_ref)`, where x_ref is a response sampled from p0. Lowering the
    log-prob of likely responses of p0 raises the implied reward of all others.

    Source: Xie et al., Exploratory Preference Optimization, algorithm 1,
    https://arxiv.org/abs/2405.21046.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      sampled_log_probs: `[...]`, log pi of one response drawn from p0 for each comparison.
      beta: KL coefficient, > 0.
      alpha: weight of the optimism, >= 0.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    chex.assert_type(sampled_log_probs, float)
    chex.assert_equal_shape([chosen_log_probs, sampled_log_probs])
    loss = dpo_loss(
        chosen_log_probs,
        rejected_log_probs,
        ref_chosen_log_probs,
        ref_rejected_log_probs,
        beta=beta,
    )
    return loss + alpha * finite_logs(sampled_log_probs)


def selm_loss(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    sampled_log_probs: Array,
    ref_sampled_log_probs: Array,
    *,
    beta: float | Array,
    alpha: float | Array,
) -> Array:
    """Returns the loss of self-exploring language models: DPO plus optimism about other responses.

    `dpo_loss + alpha beta D(x)`, where x is a response sampled from the model.

    Source: Zhang et al., Self-Exploring Language Models, https://arxiv.org/abs/2405.19332; the
    formula is that of the authors' code, https://github.com/shenao-zhang/SELM.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      sampled_log_probs: `[...]`, log pi of one response drawn from the model for each comparison;
        no gradient passes through the draw.
      ref_sampled_log_probs: `[...]`, log p0 of the same response.
      beta: KL coefficient, > 0.
      alpha: weight of the optimism, >= 0.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0.
    """
    chex.assert_type([sampled_log_probs, ref_sampled_log_probs], float)
    chex.assert_equal_shape([chosen_log_probs, sampled_log_probs, ref_sampled_log_probs])
    loss = dpo_loss(
        chosen_log_probs,
        rejected_log_probs,
        ref_chosen_log_probs,
        ref_rejected_log_probs,
        beta=beta,
    )
    log_ratio = finite_logs(sampled_log_probs) - finite_logs(ref_sampled_log_probs)
    return loss + alpha * beta * log_ratio


def _margin(chosen: Array, rejected: Array, ref_chosen: Array, ref_rejected: Array) -> Array:
    """Returns the margin `D_w - D_l`."""
    log_probs = [chosen, rejected, ref_chosen, ref_rejected]
    chex.assert_type(log_probs, float)
    chex.assert_equal_shape(log_probs)
    chosen, rejected, ref_chosen, ref_rejected = map(finite_logs, log_probs)
    return (chosen - ref_chosen) - (rejected - ref_rejected)
