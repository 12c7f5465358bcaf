"""The Bradley-Terry model with features: logistic regression on differences between items."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.optimize import minimize
from scipy.special import expit, log_expit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def fit_weights(
    features: scipy.sparse.csr_matrix,
    compared: Ints,
    wins: Floats,
    *,
    ridge: float,
    tolerance: float,
    max_steps: int = 100,
) -> Floats:
    """Fits the weights of features of items to counts of pairwise choices.

    Minimises `-sum_p (wins_p0 log sig(g_p) + wins_p1 log sig(-g_p)) + ridge/2 |w|^2`, where g_p is
    the difference between the utilities of the pair's two items, and utilities are features times
    w. With the identity as features, w are the items' own utilities: the Bradley-Terry model.

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs (1952),
    https://doi.org/10.2307/2334029.

    Args:
      features: `[N, D]`, of every item.
      compared: `[P, 2]`, the two items of every pair.
      wins: `[P, 2]`, how often the first and how often the second was preferred, >= 0.
      ridge: the precision of a Gaussian prior on w, >= 0. Where it is 0 a minimum must exist.
      tolerance: the largest norm of the gradient at the end, per choice.
      max_steps: of Newton's method in a trust region; about 6 are needed.

    Returns:
      `[D]`, the weights w.

    Raises:
      RuntimeError: if the gradient is still larger after the last step.
    """
    transposed = features.T.tocsr()
    num_items = features.shape[0]

    def gaps_of(w: Floats) -> Floats:
        u = features @ w
        return u[compared[:, 0]] - u[compared[:, 1]]

    def gaps_transposed(slopes: Floats) -> Floats:
        of_items = np.bincount(compared[:, 0], slopes, num_items)
        return transposed @ (of_items - np.bincount(compared[:, 1], slopes, num_items))

    def loss(w: Floats) -> tuple[float, Floats]:
        gaps = gaps_of(w)
        losses = wins[:, 0] * log_expit(gaps) + wins[:, 1] * log_expit(-gaps)
        slopes = wins[:, 1] * expit(gaps) - wins[:, 0] * expit(-gaps)
        return 0.5 * ridge * w @ w - losses.sum(), gaps_transposed(slopes) + ridge * w

    def hessian_product(w: Floats, v: Floats) -> Floats:
        gaps = gaps_of(w)
        curvature = wins.sum(axis=1) * expit(gaps) * expit(-gaps)
        return gaps_transposed(curvature * gaps_of(v)) + ridge * v

    largest = tolerance * max(wins.sum(), 1.0)
    result = minimize(
        loss,
        np.zeros(features.shape[1]),
        jac=True,
        hessp=hessian_product,
        method="trust-ncg",
        options={"gtol": largest, "maxiter": max_steps},
    )
    if not np.linalg.norm(result.jac) <= largest:
        raise RuntimeError(f"the fit did not converge in {result.nit} steps: {result.message}")
    return np.asarray(result.x)
