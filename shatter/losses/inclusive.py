"""Inclusive learning from human feedback (ILHF): the language model is its own reward model.

The objective over a data set of n comparisons is

    L(theta) = (1 / n) sum_i ilhf_loss_i + lambda_bar D(theta),    lambda_bar = lambda / n,

where lambda is the weight of the regulariser for the whole data set, and D is KL(p0 || pi)
("forward", convex in the logits of a full table) or KL(pi || p0) ("reverse"). The losses here are
per comparison; the caller takes the mean and adds lambda_bar D. If all documents are enumerated, D
is `shatter.numerics.kl_divergence` of two vectors of log-probs. For large models, the forward KL is
the mean of `forward_kl_loss` over documents that were sampled once from the frozen p0, and the
reverse KL is the mean of `shatter.losses.kl_k2` over fresh samples of pi.

The losses take log pi(x) in the literal form, in which people choose x as often as the model should
say it; `shatter.losses.tilted_utilities` are what they take where people choose by taste alone.
"""

import chex
import jax
import jax.numpy as jnp

from shatter import factored
from shatter.choice import luce_log_prob, ranks_log_prob
from shatter.factored import FactoredLogits
from shatter.numerics import at_least_float32, kl_divergence, masked_sum
from shatter.types import Array


def ilhf_loss(response_log_probs: Array, choices: Array) -> Array:
    """Returns minus the log of Luce's probability of the choice, from the model's own log-probs.

    `-log(pi(x_c) / sum_k pi(x_k))`; for pairs `-log sigmoid(log pi(x_w) - log pi(x_l))`. With
    enough choices of a population with density q its minimum is pi = q on the compared documents.

    Source: our reading of Xu et al., Shattering the Agent-Environment Interface for Fine-Tuning
    Inclusive Language Models, https://arxiv.org/abs/2305.11455 (only its abstract was available).

    Example:
      >>> import jax.numpy as jnp
      >>> from shatter import losses
      >>> log_probs = jnp.log(jnp.array([[0.2, 0.2], [0.1, 0.3]]))  # of two pairs of responses
      >>> choices = jnp.array([0, 1])
      >>> [round(float(loss), 3) for loss in losses.ilhf_loss(log_probs, choices)]
      [0.693, 0.288]

      These are -log(1/2) and -log(3/4).

    Args:
      response_log_probs: `[..., K]`, log pi of each response, summed over its tokens, nats;
        -inf = an empty slot.
      choices: int `[...]`, the index of the chosen response.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes or types do not fit or K < 2.
    """
    assert_responses(response_log_probs)
    return -luce_log_prob(response_log_probs, choices)


def ilhf_ranking_loss(response_log_probs: Array, ranks: Array) -> Array:
    """Returns minus the log of the Plackett-Luce probability of ranks, from the model's log-probs.

    Equal ranks mean that the order of these responses is not resolved: the probability is the sum
    over all strict orders that agree with the ranks. Ranks (1, 2, ..., 2) give `ilhf_loss`, and
    ranks that are all equal give 0.

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


def forward_kl_loss(
    ref_logits: Array | FactoredLogits, logits: Array | FactoredLogits, mask: Array
) -> Array:
    """Returns the KL of next-token laws, summed along documents that were sampled from p0.

    `sum_t mask_t KL(p0(. | x_<t) || pi(. | x_<t))`. By the chain rule of the KL, its mean over
    documents of p0 is KL(p0 || pi), in value and in gradient, with less variance than the mean of
    log p0(x) - log pi(x).

    Args:
      ref_logits: `[..., T, V]`, the frozen model's logits; entry t is the law of token t + 1.
      logits: `[..., T, V]`, the trained model's logits on the same documents. If both are factors
        (`shatter.models.lazy_logits`), neither is multiplied out.
      mask: bool `[..., T]`, true on the response's tokens, EOS included; logits outside it may be
        anything.

    Returns:
      `[...]`, nats a document.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_shape(mask, ref_logits.shape[:-1])
    if ref_logits.shape != logits.shape:
        raise AssertionError(
            f"expected logits of the same shape, found {ref_logits.shape} and {logits.shape}"
        )
    mask = mask[..., 1:]
    keep = lambda leaf: jnp.where(mask[..., None], leaf[..., :-1, :], 0.0)
    if isinstance(ref_logits, FactoredLogits) and isinstance(logits, FactoredLogits):
        kl = factored.kl_divergence(ref_logits.map_rows(keep), logits.map_rows(keep))
        return masked_sum(kl, mask)
    log_probs = lambda x: jax.nn.log_softmax(keep(at_least_float32(factored.as_array(x))))
    return masked_sum(kl_divergence(log_probs(ref_logits), log_probs(logits)), mask)


def assert_responses(utilities: Array) -> None:
    """Raises an AssertionError if there are fewer than two responses.

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
