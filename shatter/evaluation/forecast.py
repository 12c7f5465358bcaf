"""What the loss is and what more labels would bring, from a random audit stream, in NumPy.

An audit is a query that was drawn at random and that nobody learned from. With p the members'
mixture on a query of K responses, its log-loss with people who toss a coin, and by its own lights,

    coin = -(1 / K) sum_k log p_k,    expected = -sum_k p_k log p_k,    claim = coin - expected:

what the members claim to know. If people choose by `q = (1 - s) / K + s p`, the loss is
`coin - s claim`, whatever the query. So one ratio s, the share of the claims that is real, corrects
for over-confidence (s < 1) and for too much caution (s > 1). The audits estimate it
(`real_share`), and the loss of the pool follows.

The learning curve goes through the loss now, L. With r the members' own regret (`claims`) now,

    loss(n) = L - kappa r (1 - ((m + now) / (m + n))^c),

so that `L - kappa r` is what the learner would end at. Its form is fitted to the losses of all
times up to now, given s (`learning_curves`). All here is ours.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST_AUDITS = 10
"""Audits below which nothing is said."""

SHARE_PRIOR = (1.0, 0.75)
"""Mean and standard deviation of the real share of large claims, before any audit."""

CHANCE = 0.008
"""Nats: small claims may be real, or the opposite, by chance; their share has the additional
variance `CHANCE / claim`."""

KAPPA_PRIOR = (3.0, 1.0)
"""Median of kappa, and the standard deviation of its logarithm."""

JITTER_PRIOR = (0.002, 4.0)
"""How far the loss of a time lies from its curve, nats, and how many times this is worth."""

_LEAST = -700.0  # log-probs below have no exponential
_TRUST = 20.0  # audits that the members' own variance is worth
_OFFSETS = np.geomspace(10.0, 1e4, 19)
_POWERS = np.array([0.25, 0.5, 0.75, 1.0])
_KAPPA_STEPS = np.linspace(-2.5, 2.5, 21)


class Claims(NamedTuple):
    """What members claim about queries; every attribute is `[...]`, nats.

    Attributes:
      coin: the log-loss of the mixture if people toss a coin.
      expected: the log-loss that the mixture expects of itself.
      variance: the variance that the mixture expects of the log-loss of one answer, nats squared.
      regret: `mean_m KL(member's choice || mixture's)`, what the members expect to learn.
    """

    coin: Floats
    expected: Floats
    variance: Floats
    regret: Floats


class Share(NamedTuple):
    """The real share of the claims: a Student t with its location, scale and degrees of freedom."""

    mean: float
    scale: float
    freedom: float


class Curves(NamedTuple):
    """Draws of learning curves from what is believed after the audits.

    Attributes:
      labels: the number of labels now.
      share: `[D]`, the share of the claims that is real.
      loss: `[D]`, the loss now, nats.
      left: `[D]`, how far the loss would fall with all labels of the world, nats.
      offset: `[D]`, m, labels.
      power: `[D]`, c.
      jitter: `[D]`, how far the loss of a time lies from its curve, nats.
    """

    labels: float
    share: Floats
    loss: Floats
    left: Floats
    offset: Floats
    power: Floats
    jitter: Floats


def claims(log_probs: npt.ArrayLike) -> Claims:
    """Returns what the members claim about queries.

    Args:
      log_probs: `[M, ..., K]`, each member's log-probs of the choices, nats.

    Returns:
      The claims, `[...]`.
    """
    log_probs = np.maximum(np.asarray(log_probs, np.float64), _LEAST)
    probs = np.exp(log_probs)
    mean = probs.mean(axis=0)
    mixture = np.log(mean)
    expected = -(mean * mixture).sum(axis=-1)
    variance = (mean * np.square(mixture)).sum(axis=-1) - np.square(expected)
    regret = (probs * (log_probs - mixture)).sum(axis=-1).mean(axis=0)
    return Claims(-mixture.mean(axis=-1), expected, np.maximum(variance, 0.0), regret)


def real_share(losses: npt.ArrayLike, audits: Claims) -> Share:
    """Estimates the share of the members' claims that is real.

    With `y = coin - loss` and `x = coin - expected` of every audit, the estimate of s is
    `sum y / sum x`, of variance `phi sum variance / (sum x)^2`. phi is 1 where the losses vary as
    the members expect; it is estimated, with the weight of 20 audits at 1. The prior of s is normal
    with the mean and variance of `SHARE_PRIOR` and `CHANCE / mean x` more variance.

    Args:
      losses: `[A]`, the log-loss of every audit, the mean over its answers, nats.
      audits: the claims about them, `[A]`, their variance that of the mean over the answers.

    Returns:
      The posterior of s.

    Raises:
      ValueError: if there are fewer than `LEAST_AUDITS`.
    """
    losses = np.asarray(losses, np.float64)
    if len(losses) < LEAST_AUDITS:
        raise ValueError(f"expected {LEAST_AUDITS} answered audits or more, found {len(losses)}")
    real, claimed = audits.coin - losses, audits.coin - audits.expected
    variances = np.maximum(audits.variance, np.finfo(float).tiny)
    mean, deviation = SHARE_PRIOR
    deviation = np.sqrt(deviation**2 + CHANCE / max(claimed.mean(), 1e-9))
    freedom = _TRUST + len(losses)
    share, phi = mean, 1.0
    for _ in range(2):  # phi is about the share that phi = 1 gives
        precision = np.square(claimed.sum()) / (phi * variances.sum())
        total = precision + deviation**-2
        found = claimed.sum() * real.sum() / (phi * variances.sum())
        share = (found + mean * deviation**-2) / total
        spread = np.square(real - share * claimed).sum() / variances.mean()
        phi = (_TRUST + spread) / freedom
    return Share(float(share), float(total**-0.5), float(freedom))


def learning_curves(
    labels: npt.ArrayLike,
    coins: npt.ArrayLike,
    expectations: npt.ArrayLike,
    regret: float,
    share: Share,
    *,
    rng: np.random.Generator,
    num_draws: int = 2000,
) -> Curves:
    """Draws learning curves that fit the losses up to now.

    Given s, the loss of the time t is `y_t = coin_t - s (coin_t - expected_t)`, and that before any
    label `coin_0`, because whatever the members claim then is chance. The losses lie about a curve
    with a jitter. m, c and kappa are drawn from their posterior on a grid: m log-uniform from 10 to
    10,000, c one of 1/4, 1/2, 3/4 and 1, kappa log-normal (`KAPPA_PRIOR`).

    Args:
      labels: `[T]`, labels learned from at every time, ascending; the first is 0, the last is now.
      coins: `[T]`, the pool's mean coin loss at every time, nats.
      expectations: `[T]`, the pool's mean expected loss, nats.
      regret: the pool's mean regret now, nats.
      share: the real share of the claims.
      rng: makes the draws.
      num_draws: D.

    Returns:
      The curves.

    Raises:
      ValueError: if the shapes do not fit, or there is no label yet.
    """
    labels, coins, expectations = (np.asarray(x, np.float64) for x in (labels, coins, expectations))
    if len({labels.shape, coins.shape, expectations.shape}) > 1 or labels.ndim != 1:
        raise ValueError(
            "expected labels, coins and expectations [T] of one length, found "
            f"{labels.shape}, {coins.shape} and {expectations.shape}"
        )
    if len(labels) < 2 or labels[0] != 0 or (np.diff(labels) <= 0).any():
        raise ValueError(f"expected labels that rise from 0, found {labels.tolist()}")
    shares = share.mean + share.scale * rng.standard_t(share.freedom, num_draws)
    losses = coins - shares[:, None] * (coins - expectations)
    losses[:, 0] = coins[0]
    steps, offsets, powers = (
        axis.ravel() for axis in np.meshgrid(_KAPPA_STEPS, _OFFSETS, _POWERS, indexing="ij")
    )
    left = KAPPA_PRIOR[0] * np.exp(KAPPA_PRIOR[1] * steps) * regret
    ratios = (offsets[:, None] + labels[-1]) / (offsets[:, None] + labels)
    squares = _misfits(losses, left[:, None] * (ratios ** powers[:, None] - 1.0))
    scale, weight = JITTER_PRIOR
    freedom = weight + len(labels) - 1
    totals = weight * scale**2 + squares
    log_weights = -0.5 * np.square(steps) - 0.5 * freedom * np.log(totals)
    pick = (log_weights + rng.gumbel(size=log_weights.shape)).argmax(axis=1)
    jitter = np.sqrt(totals[np.arange(num_draws), pick] / rng.chisquare(freedom, num_draws))
    form = left[pick], offsets[pick], powers[pick]
    return Curves(float(labels[-1]), shares, losses[:, -1], *form, jitter)


def _misfits(losses: Floats, curves: Floats) -> Floats:
    """Returns squared distances `[D, G]` of losses `[D, T]` from curves `[G, T]` of free level."""
    losses = losses - losses.mean(axis=1, keepdims=True)
    curves = curves - curves.mean(axis=1, keepdims=True)
    own = np.square(losses).sum(axis=1)[:, None] + np.square(curves).sum(axis=1)
    return np.maximum(own - 2.0 * losses @ curves.T, 0.0)


def loss_after(curves: Curves, more: float) -> Floats:
    """Returns the loss that each curve has after more labels.

    Args:
      curves: draws of curves.
      more: the number of further labels.

    Returns:
      `[D]`, nats.
    """
    ratio = (curves.offset + curves.labels) / (curves.offset + curves.labels + more)
    return curves.loss - curves.left * (1.0 - ratio**curves.power)


def labels_to(curves: Curves, level: float | Floats) -> Floats:
    """Returns how many more labels each curve needs to a loss.

    Args:
      curves: draws of curves.
      level: the loss, or `[D]`, one a curve, nats.

    Returns:
      `[D]`, 0 where the loss is there already, inf where it never will be.
    """
    above = curves.loss - level
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.maximum(1.0 - above / curves.left, 0.0)  # as a part of all that is left
        more = (curves.offset + curves.labels) * (left ** (-1.0 / curves.power) - 1.0)
    return np.where(above <= 0.0, 0.0, np.where(left > 0.0, more, np.inf))
