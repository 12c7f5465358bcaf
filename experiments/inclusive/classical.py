"""Maximum-likelihood fits of pairwise choices, and simple laws to compare with.

Counts of wins are arrays [N, N]: entry (i, j) is how often item i was preferred to item j.
Utilities are [N], in nats, of mean 0: P(i over j) = sig(u_i - u_j), and shares are softmax(u)
(Luce's rule).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, rel_entr

from experiments.common.bradley_terry import fit_weights
from experiments.inclusive.arrays import Floats
from shatter import evaluation

TINY_RIDGE = 0.01
"""The ridge where none was asked for and no maximum exists, because some items never win or never
lose against the others (Ford 1957): a Gaussian prior on utilities, of standard deviation 10."""
GRADIENT_TOLERANCE = 1e-8  # per comparison
NEWTON_STEPS = 1000


def fit_bradley_terry(wins: Floats, *, ridge: float = 0.0) -> Floats:
    """Fits the Bradley-Terry model: minimises -sum_ij wins_ij log sig(u_i - u_j) + ridge/2 |u|^2.

    Args:
      wins: [N, N] counts, >= 0; the diagonal is ignored.
      ridge: The prior's precision, in nats^-2. `TINY_RIDGE` replaces 0 where the maximum does not
        exist (an item that never wins or never loses, or items that were not compared).

    Returns:
      [N] utilities of mean 0.

    Raises:
      ValueError: if wins is not square, or has a negative or non-finite entry.
    """
    wins = _checked_wins(wins)
    first, second = np.nonzero(np.triu(wins + wins.T, 1))
    utilities = fit_weights(
        sparse.eye(len(wins), format="csr"),
        np.stack([first, second], axis=1),
        np.stack([wins[first, second], wins[second, first]], axis=1),
        ridge=existing_ridge(wins, ridge),
        tolerance=GRADIENT_TOLERANCE,
        max_steps=NEWTON_STEPS,
    )
    return np.asarray(utilities - utilities.mean())


def fit_pair_table(wins: Floats, *, pseudo_count: float = 0.5) -> Floats:
    """Estimates P(i over j) for each pair alone, without a model that joins the pairs.

    Args:
      wins: [N, N] counts.
      pseudo_count: Added to both outcomes of every pair, > 0.

    Returns:
      [N, N] probabilities, P + P^T = 1, 0.5 on the diagonal.
    """
    wins = _checked_wins(wins)
    return (wins + pseudo_count) / (wins + wins.T + 2 * pseudo_count)


def luce_pair_table(utilities: Floats) -> Floats:
    """Returns the probabilities [N, N], sig(u_i - u_j), that i is preferred to j."""
    return expit(utilities[:, None] - utilities[None, :])


def pair_log_loss(pair_table: Floats, wins: Floats) -> float:
    """Returns the mean of -log P(winner over loser), nats, over the comparisons in wins [N, N]."""
    wins = _checked_wins(wins)
    return float(-np.sum(wins * np.log(np.where(wins > 0, pair_table, 1.0))) / wins.sum())


def majority(shares: Floats, weight: float = 0.95) -> Floats:
    """Returns [..., K]: `weight` on the largest of the shares (the first of equals), else even."""
    num_options = shares.shape[-1]
    is_largest = np.arange(num_options) == np.argmax(shares, axis=-1)[..., None]
    return np.where(is_largest, weight, (1 - weight) / (num_options - 1))


def agglomerative(p0: Floats, q: Floats, beta: float) -> Floats:
    """Returns p0 q^(1/beta) / Z, the law in which RLHF and DPO end with enough choices from q.

    Args:
      p0: [..., K] the pretrained model's probabilities.
      q: [..., K] the population's.
      beta: The KL coefficient, > 0.

    Returns:
      [..., K] probabilities.
    """
    with jax.enable_x64(True):
        log_p = evaluation.dpo_optimum(jnp.log(p0), jnp.log(q), beta=beta)
        return np.exp(np.asarray(log_p))


def kl(p: Floats, q: Floats) -> Floats:
    """Returns KL(p || q), nats, over the last axis; infinite where q is 0 and p is not."""
    return np.asarray(rel_entr(p, q).sum(axis=-1))


def _checked_wins(wins: Floats) -> Floats:
    wins = np.array(wins, np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1]:
        raise ValueError(f"wins must be square, found shape {wins.shape}")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins must be finite and not negative")
    np.fill_diagonal(wins, 0)
    return wins


def existing_ridge(wins: Floats, ridge: float) -> float:
    """Returns the ridge, or `TINY_RIDGE` if it is 0 and wins are not strongly connected."""
    if ridge == 0 and connected_components(wins > 0, connection="strong")[0] > 1:
        return TINY_RIDGE
    return ridge
