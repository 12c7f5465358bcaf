"""Where objectives end, in closed form over an enumerated space: what tests and plots compare with.

ILHF without a regulariser ends in q itself; supervised fine-tuning in the law of the
demonstrations; a reward model in r = log q + constant; SLiC has no closed form beyond two
documents.
"""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import (
    LOG_ZERO,
    assert_positive,
    at_least_float32,
    expectation,
    finite_logs,
    kl_divergence,
    masked_mean,
)
from shatter.types import Array


def posterior_optimum(
    ref_log_probs: Array, rewards: Array, *, beta: float | Array
) -> tuple[Array, Array]:
    """The optimum of KL-regularised RL: the posterior `p*(x) = p0(x) exp(r(x) / beta) / Z`.

    The same over the tree of prefixes, with soft values and the optimal next-token policy, is
    `shatter.documents.posterior_policy`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275.

    Args:
      ref_log_probs: `[..., D]`, log p0, nats; -inf where it has no mass.
      rewards: `[..., D]`.
      beta: KL coefficient, > 0; broadcast against `[...]`.

    Returns:
      `[..., D]`, log p*, nats, and `[...]`, log Z.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    chex.assert_equal_shape([ref_log_probs, rewards])
    ref_log_probs, rewards = map(at_least_float32, (ref_log_probs, rewards))
    beta = jnp.broadcast_to(at_least_float32(beta), rewards.shape[:-1])[..., None]
    can_be = ~((ref_log_probs <= LOG_ZERO) | (rewards <= LOG_ZERO))  # a NaN can, so that it is seen
    checkify.debug_check(
        jnp.all(jnp.any(can_be, axis=-1)), "no document has both mass under p0 and a finite reward"
    )
    log_p = ref_log_probs + rewards / beta
    log_p = jnp.where(can_be, log_p, LOG_ZERO)
    log_z = jax.nn.logsumexp(log_p, axis=-1)
    return jnp.where(can_be, log_p - log_z[..., None], LOG_ZERO), log_z


def reward_optimum(ref_log_probs: Array, rewards: Array) -> Array:
    """The optimum of the reward alone: p0 on the documents of the highest reward, renormalised.

    The limit beta -> 0 of `posterior_optimum`. Every law on those documents has the same reward;
    this is the one of them nearest to p0. Documents without mass under p0 are no candidates.

    Args:
      ref_log_probs: `[..., D]`, log p0, nats; -inf where it has no mass.
      rewards: `[..., D]`.

    Returns:
      `[..., D]`, nats; -1e30 elsewhere.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([ref_log_probs, rewards])
    ref_log_probs, rewards = map(at_least_float32, (ref_log_probs, rewards))
    rewards = jnp.where(ref_log_probs <= LOG_ZERO, -jnp.inf, rewards)
    best = jnp.max(rewards, axis=-1, keepdims=True)
    laws = jnp.where(rewards == best, ref_log_probs, LOG_ZERO)
    laws = jnp.where(jnp.isnan(best), best, laws)  # of an unknown reward nothing is known
    return jnp.maximum(jax.nn.log_softmax(laws), LOG_ZERO)


def dpo_optimum(ref_log_probs: Array, log_density: Array, *, beta: float | Array) -> Array:
    """Where DPO, and RLHF with a perfect reward model, end: `p0(x) q(x)^(1 / beta) / Z`.

    Source: Rafailov et al., Direct Preference Optimization, equation 4,
    https://arxiv.org/abs/2305.18290, with the reward log q.

    Args:
      ref_log_probs: `[..., D]`, log p0, nats.
      log_density: `[..., D]`, log q of the population, nats.
      beta: KL coefficient, > 0.

    Returns:
      `[..., D]`, nats.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if beta is not above 0.
    """
    return posterior_optimum(ref_log_probs, finite_logs(log_density), beta=beta)[0]


def ipo_optimum(ref_log_probs: Array, log_density: Array, *, beta: float | Array) -> Array:
    """Where IPO ends when every pair is compared equally often: `p0 exp(D) / Z`.

    `D(x) = mean_y (P(x > y) - 1/2) / beta` over all documents that p0 can say, P(x > y) = q(x) /
    (q(x) + q(y)): the least-squares potential of the margins (P - 1/2) / beta.

    Source: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
    Preferences, equation 6, https://arxiv.org/abs/2310.12036; comparisons among all documents
    instead of against a fixed law are ours.

    Args:
      ref_log_probs: `[D]`, log p0, nats; documents of -inf or -1e30 are in no comparison.
      log_density: `[D]`, log q of the population, nats.
      beta: KL coefficient, > 0.

    Returns:
      `[D]`, nats.

    Raises:
      AssertionError: if the shapes differ or have leading axes (lift it by vmap).
      ValueError: if beta is not above 0.
    """
    chex.assert_rank([ref_log_probs, log_density], 1)
    chex.assert_equal_shape([ref_log_probs, log_density])
    ref_log_probs, log_density = at_least_float32(ref_log_probs), finite_logs(log_density)
    wins = jax.nn.sigmoid(log_density[:, None] - log_density[None, :])
    can_be = jnp.broadcast_to(ref_log_probs > LOG_ZERO, wins.shape)
    return posterior_optimum(ref_log_probs, masked_mean(wins - 0.5, can_be), beta=beta)[0]


def best_of_n_log_probs(ref_log_probs: Array, rewards: Array, *, num_samples: int) -> Array:
    """The exact law of the best of n samples of the reference.

    With documents sorted by reward, `F(x)^n - F_-(x)^n`, F the chance of a document no better than
    x. Of samples with equal rewards the one that stands last in the space wins.

    Source: Stiennon et al., Learning to summarize from human feedback, appendix G.3,
    https://arxiv.org/abs/2009.01325.

    Args:
      ref_log_probs: `[D]`, log p0, nats.
      rewards: `[D]`.
      num_samples: n >= 1.

    Returns:
      `[D]`, nats; KL(it || p0) <= log n - (n - 1) / n.

    Raises:
      AssertionError: if the shapes differ or have leading axes (lift it by vmap).
      ValueError: if num_samples is below 1.
    """
    chex.assert_rank([ref_log_probs, rewards], 1)
    chex.assert_equal_shape([ref_log_probs, rewards])
    if num_samples < 1:
        raise ValueError(f"best_of_n_log_probs expects num_samples >= 1, found {num_samples}")
    order = jnp.argsort(rewards, stable=True)
    log_p = finite_logs(ref_log_probs)[order]
    log_upto = jax.lax.cumlogsumexp(log_p)
    # log(F^n - F_-^n) from the share p / F of the last one, which keeps its digits near F = 1.
    log_share = jnp.minimum(log_p - log_upto, 0.0)
    is_first = log_share >= 0.0  # F_- = 0
    rare = log_share < -60.0  # where exp underflows: 1 - (1 - s)^n is n s
    share = jnp.where(is_first | rare, -1.0, log_share)  # any, so that no gradient is NaN
    gained = jax.nn.log1mexp(-num_samples * jax.nn.log1mexp(-share))
    gained = jnp.where(rare, jnp.log(num_samples) + log_share, jnp.where(is_first, 0.0, gained))
    won = num_samples * log_upto + gained
    return jnp.zeros_like(won).at[order].set(jnp.maximum(won, LOG_ZERO))


def reward_kl_frontier(ref_log_probs: Array, rewards: Array, betas: Array) -> tuple[Array, Array]:
    """The exact reward-KL frontier: no law has more reward at the same KL(pi || p0).

    Along beta the optimum p* has `E_p* r` and `KL(p* || p0)`, both falling in beta.

    Source: Gao, Schulman, Hilton, Scaling Laws for Reward Model Overoptimization (who measure it),
    https://arxiv.org/abs/2210.10760. Exact, since `E_pi r - beta KL(pi || p0) <= beta log Z`, with
    equality at p* alone.

    Args:
      ref_log_probs: `[D]`, log p0, nats.
      rewards: `[D]`.
      betas: `[N]`, > 0.

    Returns:
      `[N]`, KL(p* || p0) in nats, and `[N]`, expected reward.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if a beta is not above 0.
    """
    assert_positive(betas=betas)
    betas = at_least_float32(betas)
    laws = jax.vmap(lambda beta: posterior_optimum(ref_log_probs, rewards, beta=beta)[0])(betas)
    kl = jax.vmap(kl_divergence, in_axes=(0, None))(laws, ref_log_probs)
    return kl, jax.vmap(expectation, in_axes=(0, None))(laws, rewards)
