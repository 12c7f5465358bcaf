"""Maximum-likelihood fits of choice and ranking models, and simple laws to compare with.

Counts of wins are arrays [N, N]: entry (i, j) is how often item i was preferred to item j.
Utilities are [N], in nats, of mean 0: P(i over j) = sig(u_i - u_j), and shares are softmax(u)
(Luce's rule).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logsumexp, rel_entr

from experiments.common.bradley_terry import fit_weights
from experiments.inclusive.arrays import Floats, Ints
from shatter import evaluation
from shatter.choice import plackett_luce_log_prob
from shatter.types import Array

TINY_RIDGE = 0.01
"""The ridge where none was asked for and no maximum exists, because some items never win or never
lose against the others (Ford 1957): a Gaussian prior on utilities, of standard deviation 10."""
EM_TOLERANCE = 1e-6  # of the log-likelihood, relative
GRADIENT_TOLERANCE = 1e-8  # per comparison; a fit that ends above 100 times as much is an error
NEWTON_STEPS = 1000


class PlackettLuceMixture(NamedTuple):
    """A mixture of Plackett-Luce laws.

    Attributes:
      weights: [C] the components' shares of the population.
      utilities: [C, N], each row of mean 0.
      log_likelihood: Of all rankings, in nats.
    """

    weights: Floats
    utilities: Floats
    log_likelihood: float


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
        ridge=_existing_ridge(wins, ridge),
        tolerance=GRADIENT_TOLERANCE,
        max_steps=NEWTON_STEPS,
    )
    return np.asarray(utilities - utilities.mean())


def fit_plackett_luce(
    rankings: Ints,
    *,
    weights: Floats | None = None,
    ridge: float = 0.0,
    start: Floats | None = None,
) -> Floats:
    """Fits the Plackett-Luce model: each place is a Luce choice among the items that are left.

    Plackett, "The Analysis of Permutations", Applied Statistics 24, 1975.

    Args:
      rankings: [R, N] item indices, best first.
      weights: [R] weight of every ranking, >= 0; None for 1 each.
      ridge: As in `fit_bradley_terry`.
      start: [N] utilities to begin with; None for 0.

    Returns:
      [N] utilities of mean 0.

    Raises:
      ValueError: if a row is not a permutation of 0..N-1.
    """
    rankings = _checked_rankings(rankings)
    num_items = rankings.shape[1]
    weights = np.ones(len(rankings)) if weights is None else weights
    if ridge == 0:
        ridge = _existing_ridge(_followed_by(rankings, weights), ridge)

    def loss(u: Floats) -> tuple[float, Floats]:
        with jax.enable_x64(True):
            value, gradient = _plackett_luce_loss(u, rankings, weights, ridge)
        return float(value), np.asarray(gradient)

    start = np.zeros(num_items) if start is None else start
    return _minimise(loss, start, max(weights.sum() * num_items, 1.0))


def plackett_luce_log_probs(utilities: Floats, rankings: Ints) -> Floats:
    """Returns `shatter.choice.plackett_luce_log_prob` of many rankings in float64.

    Args:
      utilities: [N], nats.
      rankings: [R, N] item indices, best first.

    Returns:
      [R] log-probabilities, nats.
    """
    with jax.enable_x64(True):
        return np.asarray(_plackett_luce_log_probs(utilities, rankings))


def fit_mixture_plackett_luce(
    rankings: Ints,
    num_components: int,
    *,
    seed: int,
    ridge: float = TINY_RIDGE,
    max_iterations: int = 200,
) -> PlackettLuceMixture:
    """Fits a mixture of Plackett-Luce laws by expectation maximisation from a random start.

    Args:
      rankings: [R, N] item indices, best first.
      num_components: C.
      seed: Seed of NumPy's default generator. The fit is a local maximum, so compare several
        seeds.
      ridge: As in `fit_bradley_terry`, for each component.
      max_iterations: The most rounds of expectation and maximisation; they end earlier once the
        log-likelihood gains less than `EM_TOLERANCE` of itself.

    Returns:
      The mixture of the last round.

    Raises:
      ValueError: if a row is not a permutation of 0..N-1.
    """
    rankings = _checked_rankings(rankings)
    rng = np.random.default_rng(seed)
    posterior = rng.dirichlet(np.ones(num_components), size=len(rankings))
    utilities = np.zeros((num_components, rankings.shape[1]))
    previous = -np.inf
    for _ in range(max_iterations):
        weights = posterior.mean(axis=0)
        utilities = np.stack(
            [
                fit_plackett_luce(rankings, weights=p, ridge=ridge, start=u)
                for p, u in zip(posterior.T, utilities, strict=True)
            ]
        )
        log_probs = [plackett_luce_log_probs(u, rankings) for u in utilities]
        joint = np.log(weights) + np.stack(log_probs, axis=1)
        evidence = logsumexp(joint, axis=1, keepdims=True)
        posterior = np.exp(joint - evidence)
        log_likelihood = float(evidence.sum())
        if log_likelihood - previous < EM_TOLERANCE * abs(log_likelihood):
            break
        previous = log_likelihood
    return PlackettLuceMixture(weights, utilities, log_likelihood)


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


def _checked_rankings(rankings: Ints) -> Ints:
    rankings = np.asarray(rankings)
    wrong = np.flatnonzero((np.sort(rankings, axis=1) != np.arange(rankings.shape[1])).any(axis=1))
    if len(wrong):
        row = rankings[wrong[0]].tolist()
        raise ValueError(
            f"ranking {wrong[0]} is {row}, not a permutation of 0..{rankings.shape[1] - 1}"
        )
    return rankings


def _existing_ridge(wins: Floats, ridge: float) -> float:
    """Returns the ridge, or `TINY_RIDGE` if it is 0 and wins are not strongly connected."""
    if ridge == 0 and connected_components(wins > 0, connection="strong")[0] > 1:
        return TINY_RIDGE
    return ridge


def _followed_by(rankings: Ints, weights: Floats) -> Floats:
    """Returns [N, N]: the total weight of the rankings with item j directly after item i."""
    num_items = rankings.shape[1]
    follows = np.zeros((num_items, num_items))
    np.add.at(follows, (rankings[:, :-1], rankings[:, 1:]), weights[:, None])
    return follows


@jax.jit
def _plackett_luce_log_probs(utilities: Array, rankings: Array) -> Array:
    return jax.vmap(plackett_luce_log_prob, in_axes=(None, 0))(utilities, rankings)


@jax.jit
@jax.value_and_grad
def _plackett_luce_loss(utilities: Array, rankings: Array, weights: Array, ridge: float) -> Array:
    log_probs = _plackett_luce_log_probs(utilities, rankings)
    return 0.5 * ridge * utilities @ utilities - weights @ log_probs


def _minimise(
    loss: Callable[[Floats], tuple[float, Floats]], start: Floats, scale: float
) -> Floats:
    """Returns the minimum of a smooth convex loss of about `scale` comparisons, shifted to mean 0.

    By BFGS, because L-BFGS-B calls a threaded LAPACK at each of its steps, which was measured to
    take several times as long on problems this small.
    """
    options = {"maxiter": 10_000, "gtol": GRADIENT_TOLERANCE * scale}
    result = minimize(loss, start, jac=True, method="BFGS", options=options)
    slope = np.abs(result.jac).max()
    if not slope <= 100 * GRADIENT_TOLERANCE * scale:
        raise RuntimeError(f"the fit did not converge: slope {slope}, {result.message}")
    return np.asarray(result.x - result.x.mean())
