"""Next-token cross-entropy, and losses of a reward model on choices and rankings."""

import chex

from shatter.choice import luce_log_prob, ranks_log_prob
from shatter.losses.inclusive import assert_responses
from shatter.numerics import masked_sum
from shatter.types import Array


def sft_loss(token_log_probs: Array, mask: Array) -> Array:
    """Returns the loss of supervised fine-tuning: minus the log-prob of a demonstrated response.

    `-sum_t mask_t log pi(x_t | x_<t)`. Its mean over documents of a population q is the
    cross-entropy of q, which is smallest at pi = q.

    Source: Ouyang et al., Training language models to follow instructions with human feedback,
    section 3.5, https://arxiv.org/abs/2203.02155.

    Args:
      token_log_probs: `[..., T]`, nats; outside the mask they may be anything, even -inf.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.

    Returns:
      `[...]`, nats, summed over the tokens; 0 where the mask is empty.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([token_log_probs, mask], [float, bool])
    chex.assert_equal_shape([token_log_probs, mask])
    return -masked_sum(token_log_probs, mask)


def reward_model_loss(rewards: Array, choices: Array) -> Array:
    """Returns minus the log of Luce's probability of the choice, from learned rewards.

    `-log(exp r_c / sum_k exp r_k)`; for pairs, Bradley-Terry's `-log sigmoid(r_w - r_l)`. With
    choices of a population of density q the optimum is r = log q plus a constant for each prompt.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences, equation 1,
    https://arxiv.org/abs/1909.08593; Ouyang et al., equation 1, https://arxiv.org/abs/2203.02155.

    Args:
      rewards: `[..., K]`, the reward of each response; -inf = an empty slot.
      choices: int `[...]`, the index of the chosen response.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes or types do not fit or K < 2.
    """
    assert_responses(rewards)
    return -luce_log_prob(rewards, choices)


def reward_model_ranking_loss(rewards: Array, ranks: Array) -> Array:
    """Returns minus the log of the Plackett-Luce probability of ranks, from learned rewards.

    The probability is the sum over all strict orders that agree with the ranks. Ranks (1, 2, ...,
    2) give `reward_model_loss`.

    Source: Plackett, The Analysis of Permutations (1975); the treatment of equal ranks is ours.

    Args:
      rewards: `[..., K]`, the reward of each response.
      ranks: int `[..., K]`, smaller is better; equal = order not resolved; < 0 = not shown.

    Returns:
      `[...]`, nats, >= 0.

    Raises:
      AssertionError: if the shapes or types do not fit or K < 2.
    """
    assert_responses(rewards)
    return -ranks_log_prob(rewards, ranks)
