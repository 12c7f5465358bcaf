"""Direct methods: a policy from comparisons, without a reward model.

All see the log-ratio D(x) = log pi(x) - log p0(x) of the chosen (w) and the rejected (l) response,
except SLiC, which sees log pi alone. Where they end in a closed form, `shatter.evaluation` has it:
`dpo_optimum`, `ipo_optimum`.
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
    """Direct preference optimisation: a reward model whose reward is `beta D`.

    `-(1 - eps) log sigmoid(beta (D_w - D_l)) - eps log sigmoid(-beta (D_w - D_l))`. With choices of
    a population of density q and eps = 0 it ends in `p0 q^(1 / beta) / Z`, not in q.

    Source: Rafailov et al., Direct Preference Optimization, equation 7,
    https://arxiv.org/abs/2305.18290; eps: Mitchell, A note on DPO with noisy preferences,
    https://ericmitchell.ai/cdpo.pdf.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      beta: KL coefficient, > 0.
      label_smoothing: eps, the share of labels held to be flipped, 0 <= eps < 1/2.

    Returns:
      `[...]`, nats; log 2 where pi = p0.

    Raises:
      AssertionError: if the shapes differ or the log-probs are not floating.
      ValueError: if beta is not above 0, or eps not in its range.
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
    """Identity preference optimisation: the margin is drawn to a finite value.

    `(D_w - D_l - 1 / (2 beta))^2`. A pair that always goes one way has a finite optimum, where
    DPO's runs away: over choices of x with chance P, `D_x - D_y = (P - 1/2) / beta`.

    Source: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
    Preferences, equation 17, https://arxiv.org/abs/2310.12036.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      beta: KL coefficient, > 0.

    Returns:
      `[...]`, squared nats; in float32 beyond its range, inf, from margins of 1.8e19 nats.

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
    """Sequence likelihood calibration: a hinge on the log-probs themselves.

    `max(0, delta - (log pi(x_w) - log pi(x_l)))`. The paper adds a cross-entropy towards the
    reference, which is `sft_loss` on samples of p0. Alone, the expected loss of a pair is least at
    a log-ratio of +-delta for whatever majority: it does not learn shares.

    Source: Zhao et al., SLiC-HF, equation 1, https://arxiv.org/abs/2305.10425.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      delta: the margin asked for, nats, > 0.

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
    """Exploratory preference optimisation: DPO with optimism about what the reference says little.

    `dpo_loss + alpha log pi(x_ref)`, x_ref a response sampled from p0: lowering the log-prob of
    what p0 says raises the implied reward of everything else.

    Source: Xie et al., Exploratory Preference Optimization, algorithm 1,
    https://arxiv.org/abs/2405.21046.

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      sampled_log_probs: `[...]`, log pi of a response drawn from p0, one a comparison.
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
    """Self-exploring language models: DPO with optimism away from the model's own samples.

    `dpo_loss + alpha beta D(x)`, x a response sampled from the model.

    Source: Zhang et al., Self-Exploring Language Models, https://arxiv.org/abs/2405.19332 (its
    objective as our theory page gives it: the paper was not at hand).

    Args:
      chosen_log_probs: `[...]`, log pi of the chosen response, nats, summed over its tokens.
      rejected_log_probs: `[...]`, log pi of the other.
      ref_chosen_log_probs: `[...]`, log p0 of the chosen response.
      ref_rejected_log_probs: `[...]`, log p0 of the other.
      sampled_log_probs: `[...]`, log pi of a response drawn from the model, one a comparison; the
        draw itself is held fixed.
      ref_sampled_log_probs: `[...]`, log p0 of it.
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
    """`D_w - D_l`."""
    log_probs = [chosen, rejected, ref_chosen, ref_rejected]
    chex.assert_type(log_probs, float)
    chex.assert_equal_shape(log_probs)
    chosen, rejected, ref_chosen, ref_rejected = map(finite_logs, log_probs)
    return (chosen - ref_chosen) - (rejected - ref_rejected)
