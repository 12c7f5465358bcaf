"""Heads on fixed features, fitted to shares: of everybody, of groups, and of single persons."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter import ensembles
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array

PRIOR_SCALES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of a head's weights, on features of mean square 1
GROUP_SCALES = (0.1, 0.3, 1.0)  # of a group's difference, over that of everybody
PERSON_SCALES = (0.03, 0.1, 0.3, 1.0)  # of a person's difference
NUM_STEPS = 12  # of Newton's method


@functools.cache
def _fit() -> Callable[..., Array]:
    def fit(features: Array, shares: Array, valid: Array, prior_scale: Array) -> Array:
        return ensembles.fit_laplace(
            features, shares, valid=valid, prior_scale=prior_scale, num_steps=NUM_STEPS
        ).mean

    return jax.jit(fit, compiler_options=compiler_options())


def fit_head(features: Any, shares: Any, valid: Any, prior_scale: float) -> np.ndarray:
    """Fits the weights of a linear utility to shares, every row counting once.

    Args:
      features: `[N, K, P]`.
      shares: `[N, K]`, each row summing to 1.
      valid: bool `[N, K]`, false in empty slots.
      prior_scale: of the weights.

    Returns:
      `[P]`.
    """
    arrays = (np.asarray(features, np.float32), np.asarray(shares, np.float32), valid)
    return np.asarray(_fit()(*arrays, jnp.float32(prior_scale)), np.float64)


def choose_scale(
    features: Any, shares: Any, valid: Any, units: Sequence[Any], scales: Sequence[float]
) -> float:
    """Chooses a prior scale by predicting units that the fit has not seen, in three folds.

    Args:
      features: `[N, K, P]`.
      shares: `[N, K]`.
      valid: bool `[N, K]`.
      units: N, rows with equal ones are held out together.
      scales: the scales to choose among.

    Returns:
      The scale of the least cross-entropy.
    """
    names = list(dict.fromkeys(units))
    folds = np.array([names.index(unit) % 3 for unit in units])
    losses = dict.fromkeys(scales, 0.0)
    for fold in range(min(3, len(names))):
        held = folds == fold
        if held.all():
            continue
        for scale in scales:
            weights = fit_head(features[~held], shares[~held], valid[~held], scale)
            law = log_law(features[held] @ weights, valid[held])
            losses[scale] -= float(np.sum(shares[held] * np.where(valid[held], law, 0.0)))
    return min(scales, key=losses.__getitem__)


def log_law(utilities: Any, valid: Any) -> np.ndarray:
    """Returns Luce's log-probs of the options, `[..., K]`; -inf in empty slots."""
    with np.errstate(divide="ignore"):
        masked = np.where(valid, utilities, -np.inf)
        return masked - np.logaddexp.reduce(masked, axis=-1, keepdims=True)


def by_group(features: np.ndarray, groups: np.ndarray, num_groups: int, scale: float) -> np.ndarray:
    """Returns features whose head is that of everybody plus a difference for every group.

    A difference has `scale` times the prior scale of everybody's weights, so a group is pulled to
    everybody, the more the fewer its answers.

    Args:
      features: `[N, K, P]`.
      groups: int `[N]`, from 1; 0 = everybody.
      num_groups: G.
      scale: of the differences.

    Returns:
      `[N, K, P + G P]`.
    """
    num, options, size = features.shape
    own = np.zeros((num, options, num_groups, size), features.dtype)
    rows = np.flatnonzero(groups)
    own[rows, :, groups[rows] - 1] = scale * features[rows]
    return np.concatenate([features, own.reshape(num, options, -1)], axis=-1)


@functools.cache
def _fit_people() -> Callable[..., Array]:
    def of_person(
        features: Array,
        utilities: Array,
        valid: Array,
        choices: Array,
        counted: Array,
        scale: Array,
    ) -> Array:
        def loss(weights: Array) -> Array:
            own = jnp.where(valid, utilities + features @ weights, -1e30)
            law = jax.nn.log_softmax(own)
            chosen = jnp.take_along_axis(law, choices[:, None], axis=1)[:, 0]
            return 0.5 * jnp.sum(weights**2) / scale**2 - jnp.sum(counted * chosen)

        def step(weights: Array, _: None) -> tuple[Array, None]:
            slope, curvature = jax.grad(loss)(weights), jax.hessian(loss)(weights)
            direction = -jnp.linalg.solve(curvature, slope)
            lengths = 0.5 ** jnp.arange(6.0)
            found = jax.vmap(lambda length: loss(weights + length * direction))(lengths)
            return weights + lengths[jnp.argmin(found)] * direction, None

        start = jnp.zeros(features.shape[-1])
        return jax.lax.scan(step, start, length=8)[0]

    over = jax.vmap(of_person, in_axes=(0, 0, 0, 0, 0, None))
    return jax.jit(over, compiler_options=compiler_options())


def fit_people(
    features: Any, utilities: Any, valid: Any, choices: Any, counted: Any, scale: float
) -> np.ndarray:
    """Fits every person's difference from the utilities of everybody (or of a group).

    It minimises `sum over answers of -log p + |d|^2 / (2 scale^2)`, the most probable difference d
    under a Gaussian prior whose centre is everybody: the hierarchical form of a head a person.

    Args:
      features: `[R, A, K, P]`, of the A answers of R persons.
      utilities: `[R, A, K]`, of everybody, nats.
      valid: bool `[R, A, K]`, false in empty slots.
      choices: int `[R, A]`.
      counted: bool `[R, A]`, which answers are known.
      scale: of the differences.

    Returns:
      `[R, P]`.
    """
    arrays = (np.asarray(features, np.float32), np.asarray(utilities, np.float32), valid, choices)
    return np.asarray(_fit_people()(*arrays, counted, jnp.float32(scale)), np.float64)
