"""Maximum-likelihood fits of rankings: the Plackett-Luce model and mixtures of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from experiments.inclusive.arrays import Floats, Ints
from experiments.inclusive.classical import GRADIENT_TOLERANCE, TINY_RIDGE, existing_ridge
from shatter.choice import plackett_luce_log_prob
from shatter.types import Array

EM_TOLERANCE = 1e-6  # of the log-likelihood, relative


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
        ridge = existing_ridge(_followed_by(rankings, weights), ridge)

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


def _checked_rankings(rankings: Ints) -> Ints:
    rankings = np.asarray(rankings)
    wrong = np.flatnonzero((np.sort(rankings, axis=1) != np.arange(rankings.shape[1])).any(axis=1))
    if len(wrong):
        row = rankings[wrong[0]].tolist()
        raise ValueError(
            f"ranking {wrong[0]} is {row}, not a permutation of 0..{rankings.shape[1] - 1}"
        )
    return rankings


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
