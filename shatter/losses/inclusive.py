"""Inclusive learning from human feedback (ILHF): the language model is its own reward model.

The objective over a data set of n comparisons is

    L(theta) = (1 / n) sum_i ilhf_loss_i + lambda_bar D(theta),    lambda_bar = lambda / n,

lambda the weight of the regulariser for the whole data set, D = KL(p0 || pi) ("forward", convex in
full-table logits) or KL(pi || p0) ("reverse"). The losses here are per comparison; the caller takes
the mean and adds lambda_bar D. With every document enumerated, D is
`shatter.numerics.kl_divergence` of the two vectors of log-probs. For large models: forward is the
mean of `forward_kl_loss` over documents sampled once from the frozen p0; reverse is the mean of
`shatter.losses.kl_k2` over fresh samples of pi.
"""

import chex
import jax
import jax.numpy as jnp

from shatter.choice import luce_log_prob, ranks_log_prob
from shatter.numerics import at_least_float32, kl_divergence, masked_sum
from shatter.types import Array


def ilhf_loss(response_log_probs: Array, choices: Array) -> Array:
    """Minus the log of Luce's probability of the choice, on the model's own log-probs.

    `-log(pi(x_c) / sum_k pi(x_k))`; for pairs `-log sigmoid(log pi(x_w) - log pi(x_l))`. With
    enough choices of a population with density q it makes pi = q on the documents compared.

    Source: our reading of Xu et al., Shattering the Agent-Environment Interface for Fine-Tuning
    Inclusive Language Models, https://arxiv.org/abs/2305.11455 (only its abstract was at hand).

    Args:
      response_log_probs: `[..., K]`, log pi of each response, summed over its tokens, nats;
        -inf = an empty slot.
      choices: int `[...]`, the chosen response.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes or types do not fit or K < 2.
    """
    assert_responses(response_log_probs)
    return -luce_log_prob(response_log_probs, choices)


def ilhf_ranking_loss(response_log_probs: Array, ranks: Array) -> Array:
    """Minus the log of the Plackett-Luce probability of the ranks, on the model's own log-probs.

    Equal ranks mean "order unresolved": the probability is the sum over all strict orders that
    agree with them. Ranks (1, 2, ..., 2) give `ilhf_loss`; all equal, 0.

    Source: our extension of Xu et al., https://arxiv.org/abs/2305.11455, to rankings.

    Args:
      response_log_probs: `[..., K]`, log pi of each response, nats.
      ranks: int `[..., K]`, smaller is better; < 0 = not shown.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes or types do not fit or K < 2.
    """
    assert_responses(response_log_probs)
    return -ranks_log_prob(response_log_probs, ranks)


def forward_kl_loss(ref_logits: Array, logits: Array, mask: Array) -> Array:
    """KL(p0 || pi) along documents sampled from p0: the full-vocabulary KL at every position.

    `sum_t mask_t KL(p0(. | x_<t) || pi(. | x_<t))`; by the chain rule of KL its mean over documents
    of p0 is KL(p0 || pi), in value and in gradient, with less variance than log p0(x) - log pi(x).

    Args:
      ref_logits: `[..., T, V]`, the frozen model's logits; entry t is the law of token t + 1.
      logits: `[..., T, V]`, the trained model's logits on the same documents.
      mask: bool `[..., T]`, true on the response's tokens, EOS included; logits outside it may be
        anything.

    Returns:
      `[...]`, nats a document.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([ref_logits, logits])
    chex.assert_equal_shape([ref_logits[..., 0], mask])
    mask = mask[..., 1:]

    def log_probs(logits: Array) -> Array:
        counted = jnp.where(mask[..., None], at_least_float32(logits[..., :-1, :]), 0.0)
        return jax.nn.log_softmax(counted)

    return masked_sum(kl_divergence(log_probs(ref_logits), log_probs(logits)), mask)


def assert_responses(utilities: Array) -> None:
    """Refuses fewer than two responses.

    Args:
      utilities: `[..., K]`, log-probs or rewards.

    Raises:
      AssertionError: if K < 2.
    """
    if utilities.ndim < 1 or utilities.shape[-1] < 2:
        raise AssertionError(
            "a comparison needs at least two responses: expected response_log_probs or rewards "
            f"[..., K] with K >= 2, found shape {utilities.shape}"
        )
