"""Measures of predicted shares against observed ones, and the floor that sampling leaves."""

import jax.numpy as jnp
import numpy as np

from experiments.people.learners import log_law
from shatter import evaluation
from shatter.cli.common.votes import Floats

BINS = 10  # of predicted shares
DRAWS = 200  # of the floor


def share_kl(laws: Floats, counts: Floats) -> Floats:
    """Returns KL(shares || model) of every row, nats.

    Args:
      laws: `[N, K]`, log-probs; -inf in empty slots.
      counts: `[N, K]`, answers; 0 in empty slots, each row above 0.

    Returns:
      `[N]`.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.asarray(evaluation.soft_kl(jnp.asarray(laws), jnp.asarray(shares)), np.float64)


def noise_floor(laws: Floats, counts: Floats, rng: np.random.Generator) -> float:
    """Returns the mean KL of samples of as many people if the model were exactly right.

    Args:
      laws: `[N, K]`, log-probs; -inf in empty slots.
      counts: `[N, K]`, answers, whose row sums are the numbers of people.
      rng: draws the samples.

    Returns:
      Nats.
    """
    people = np.maximum(np.round(counts.sum(axis=1)).astype(int), 1)
    law = np.exp(laws)
    drawn = [rng.multinomial(people, law / law.sum(axis=1, keepdims=True)) for _ in range(DRAWS)]
    return float(np.mean([share_kl(laws, sample.astype(float)).mean() for sample in drawn]))


def calibration(laws: Floats, counts: Floats, valid: np.ndarray) -> dict[str, list[float]]:
    """Compares predicted with observed shares of options, by equal bins of the predicted ones.

    Args:
      laws: `[N, K]`, log-probs.
      counts: `[N, K]`, answers.
      valid: bool `[N, K]`, false in empty slots.

    Returns:
      predicted, observed and number, sums over the options of each bin.
    """
    predicted = np.exp(laws)[valid]
    observed = (counts / counts.sum(axis=1, keepdims=True))[valid]
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    total = lambda values: np.bincount(bins, values, BINS).tolist()
    return {
        "predicted": total(predicted),
        "observed": total(observed),
        "number": total(np.ones_like(predicted)),
    }


def calibration_error(bins: dict[str, list[float]]) -> float:
    """Returns the mean over options of the distance of predicted and observed shares by bins."""
    gaps = np.abs(np.array(bins["predicted"]) - np.array(bins["observed"]))
    return float(gaps.sum() / sum(bins["number"]))


def uniform(valid: np.ndarray) -> Floats:
    """Returns the log-probs `[N, K]` of a law that knows nothing."""
    return log_law(np.zeros(valid.shape), valid)
