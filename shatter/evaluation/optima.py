"""The optima of objectives in closed form over an enumerated space.

Other optima need no function: ILHF without a regulariser has the optimum q, supervised fine-tuning
the law of the demonstrations, and a reward model r = log q + constant. SLiC has no closed form
for more than two documents.
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
    """Returns the optimum of KL-regularised RL, the posterior `p*(x) = p0(x) exp(r(x) / beta) / Z`.

    `shatter.documents.posterior_policy` returns the same law as a next-token policy over the tree
    of prefixes, with its soft values.

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
    # True for NaN, which then shows in the result.
    can_be = ~((ref_log_probs <= LOG_ZERO) | (rewards <= LOG_ZERO))
    checkify.debug_check(
        jnp.all(jnp.any(can_be, axis=-1)), "no document has both mass under p0 and a finite reward"
    )
    log_p = ref_log_probs + rewards / beta
    log_p = jnp.where(can_be, log_p, LOG_ZERO)
    log_z = jax.nn.logsumexp(log_p, axis=-1)
    return jnp.where(can_be, log_p - log_z[..., None], LOG_ZERO), log_z


def reward_optimum(ref_log_probs: Array, rewards: Array) -> Array:
    """Returns the optimum of the reward alone: p0 restricted to the documents of highest reward.

    It is the limit beta -> 0 of `posterior_optimum`. All laws on these documents have the same
    reward; this one has the smallest KL from p0. Documents without mass under p0 are left out.

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
    laws = jnp.where(jnp.isnan(best), best, laws)  # a reward that is NaN makes the law NaN
    return jnp.maximum(jax.nn.log_softmax(laws), LOG_ZERO)


def dpo_optimum(ref_log_probs: Array, log_density: Array, *, beta: float | Array) -> Array:
    """Returns the optimum of DPO, and of RLHF with a perfect reward model: `p0 q^(1 / beta) / Z`.

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
    """Returns the optimum of IPO if all pairs are compared equally often: `p0 exp(D) / Z`.

    `D(x) = mean_y (P(x > y) - 1/2) / beta` over all documents that have mass under p0, with
    P(x > y) = q(x) / (q(x) + q(y)): the least-squares potential of the margins (P - 1/2) / beta.

    Source: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
    Preferences, equation 6, https://arxiv.org/abs/2310.12036; comparisons among all documents
    instead of against a fixed law are ours.

    Args:
      ref_log_probs: `[D]`, log p0, nats; documents with -inf or -1e30 are never compared.
      log_density: `[D]`, log q of the population, nats.
      beta: KL coefficient, > 0.

    Returns:
      `[D]`, nats.

    Raises:
      AssertionError: if the shapes differ or have leading axes (use vmap).
      ValueError: if beta is not above 0.
    """
    chex.assert_rank([ref_log_probs, log_density], 1)
    chex.assert_equal_shape([ref_log_probs, log_density])
    ref_log_probs, log_density = at_least_float32(ref_log_probs), finite_logs(log_density)
    wins = jax.nn.sigmoid(log_density[:, None] - log_density[None, :])
    can_be = jnp.broadcast_to(ref_log_probs > LOG_ZERO, wins.shape)
    return posterior_optimum(ref_log_probs, masked_mean(wins - 0.5, can_be), beta=beta)[0]


def best_of_n_log_probs(ref_log_probs: Array, rewards: Array, *, num_samples: int) -> Array:
    """Returns the exact law of the best of n samples of the reference.

    With documents sorted by reward it is `F(x)^n - F_-(x)^n`, where F(x) is the probability of
    the documents up to x and F_-(x) that of the documents before x. Among samples with equal
    rewards the one that comes last in the space wins.

    Source: Stiennon et al., Learning to summarize from human feedback, appendix G.3,
    https://arxiv.org/abs/2009.01325.

    Args:
      ref_log_probs: `[D]`, log p0, nats.
      rewards: `[D]`.
      num_samples: n >= 1.

    Returns:
      `[D]`, nats; its KL from p0 is at most log n - (n - 1) / n.

    Raises:
      AssertionError: if the shapes differ or have leading axes (use vmap).
      ValueError: if num_samples is below 1.
    """
    chex.assert_rank([ref_log_probs, rewards], 1)
    chex.assert_equal_shape([ref_log_probs, rewards])
    if num_samples < 1:
        raise ValueError(f"best_of_n_log_probs expects num_samples >= 1, found {num_samples}")
    order = jnp.argsort(rewards, stable=True)
    log_p = finite_logs(ref_log_probs)[order]
    log_upto = jax.lax.cumlogsumexp(log_p)
    # log(F^n - F_-^n) is computed from the share p / F of x, which keeps its digits near F = 1.
    log_share = jnp.minimum(log_p - log_upto, 0.0)
    is_first = log_share >= 0.0  # F_- = 0
    rare = log_share < -60.0  # where exp would underflow, 1 - (1 - s)^n is n s
    share = jnp.where(is_first | rare, -1.0, log_share)  # any finite value, for finite gradients
    gained = jax.nn.log1mexp(-num_samples * jax.nn.log1mexp(-share))
    gained = jnp.where(rare, jnp.log(num_samples) + log_share, jnp.where(is_first, 0.0, gained))
    won = num_samples * log_upto + gained
    return jnp.zeros_like(won).at[order].set(jnp.maximum(won, LOG_ZERO))


def reward_kl_frontier(ref_log_probs: Array, rewards: Array, betas: Array) -> tuple[Array, Array]:
    """Returns the exact reward-KL frontier: no law has more reward at the same KL(pi || p0).

    The frontier consists of the optima p* along beta; both `E_p* r` and `KL(p* || p0)` fall in
    beta. It is exact because `E_pi r - beta KL(pi || p0) <= beta log Z`, with equality only at p*.

    Source: Gao, Schulman, Hilton, Scaling Laws for Reward Model Overoptimization, who measure it,
    https://arxiv.org/abs/2210.10760.

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
