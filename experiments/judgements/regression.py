"""Ridge logistic regression of votes on pairs, where the utility of an item is linear."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from shatter.cli.common.votes import Floats, Ints, Pairs

HELD_PAIRS, HELD_ITEMS, HELD_PROMPTS = 0.1, 0.3, 0.2  # of the training rows, to choose a ridge by
FEWEST_PROMPTS = 10  # with fewer, items are held out and not whole prompts
TOLERANCE = 1e-6  # of the gradient, per vote
MAX_STEPS = 100  # of Newton's method; about 6 are needed


def fit(features: scipy.sparse.csr_matrix, compared: Ints, wins: Floats, ridge: float) -> Floats:
    """Minimises -sum_p (wins_p0 log sig(g_p) + wins_p1 log sig(-g_p)) + ridge/2 |w|^2.

    `g_p` is the difference of the utilities of a pair's two items, and the utilities are the
    features times the weights w.

    Args:
      features: `[N, F]`, of the items.
      compared: `[P, 2]`, the two items of each pair.
      wins: `[P, 2]`, votes for each of them.
      ridge: the precision of the prior on the weights, nats^-2.

    Returns:
      The weights `[F]`.

    Raises:
      ValueError: if the ridge is not above 0.
      RuntimeError: if the fit does not converge.
    """
    if not ridge > 0:
        raise ValueError(
            f"expected a ridge above 0, without which a fit need not exist, found {ridge}"
        )
    transposed = features.T.tocsr()
    num_items = features.shape[0]

    def gaps_of(w: Floats) -> Floats:
        u = features @ w
        return u[compared[:, 0]] - u[compared[:, 1]]

    def pull(slopes: Floats) -> Floats:  # the transpose of gaps_of
        of_items = np.bincount(compared[:, 0], slopes, num_items)
        return transposed @ (of_items - np.bincount(compared[:, 1], slopes, num_items))

    def loss(w: Floats) -> tuple[float, Floats]:
        gaps = gaps_of(w)
        losses = wins[:, 0] * log_expit(gaps) + wins[:, 1] * log_expit(-gaps)
        slopes = wins[:, 1] * expit(gaps) - wins[:, 0] * expit(-gaps)
        return 0.5 * ridge * w @ w - losses.sum(), pull(slopes) + ridge * w

    def curve(w: Floats, v: Floats) -> Floats:  # the Hessian times v
        gaps = gaps_of(w)
        return pull(wins.sum(axis=1) * expit(gaps) * expit(-gaps) * gaps_of(v)) + ridge * v

    tolerance = TOLERANCE * max(wins.sum(), 1.0)
    start = np.zeros(features.shape[1])
    options = {"gtol": tolerance, "maxiter": MAX_STEPS}
    result = minimize(loss, start, jac=True, hessp=curve, method="trust-ncg", options=options)
    if not np.linalg.norm(result.jac) <= tolerance:
        raise RuntimeError(f"the fit did not converge in {result.nit} steps: {result.message}")
    return result.x


def choose_ridge(
    features: scipy.sparse.csr_matrix,
    pairs: Pairs,
    wins: Floats,
    parts: tuple[Ints, Ints],
    ridges: Sequence[float],
) -> float:
    """Returns the ridge whose fit to the first part of the pairs has the least loss on the second.

    Args:
      features: `[N, F]`, of the items.
      pairs: all pairs.
      wins: `[P, 2]`, votes for each item of a pair.
      parts: the pairs to fit to and the pairs to choose by.
      ridges: the ridges to choose among.
    """
    fitted, held = parts

    def loss(ridge: float) -> float:
        u = features @ fit(features, pairs.compared[fitted], wins[fitted], ridge)
        gaps = u[pairs.compared[held, 0]] - u[pairs.compared[held, 1]]
        return float(-wins[held, 0] @ log_expit(gaps) - wins[held, 1] @ log_expit(-gaps))

    return min(ridges, key=loss)


def known_part(pairs: Pairs) -> tuple[Ints, Ints]:
    """Returns pairs to fit to, and a tenth of the pairs to choose by, drawn at random."""
    order = np.random.default_rng(0).permutation(len(pairs.compared))
    num_held = round(HELD_PAIRS * len(order))
    return order[num_held:], order[:num_held]


def new_part(pairs: Pairs) -> tuple[Ints, Ints]:
    """Returns pairs to fit to, and pairs to choose by whose items (or prompts) the others lack."""
    rng = np.random.default_rng(0)
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs.items))
    if len(prompts) >= FEWEST_PROMPTS:
        held = {
            prompts[i] for i in rng.permutation(len(prompts))[: round(HELD_PROMPTS * len(prompts))]
        }
        is_held = np.array([prompt in held for prompt, _ in pairs.items])
    else:
        is_held = rng.random(len(pairs.items)) < HELD_ITEMS
    num_held = is_held[pairs.compared].sum(axis=1)
    return np.flatnonzero(num_held == 0), np.flatnonzero(num_held == 2)
