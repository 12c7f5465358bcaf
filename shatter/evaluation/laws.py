"""Exact measures of a law over an enumerated space against the law of a population."""

import jax
import jax.numpy as jnp

from shatter.numerics import (
    at_least_float32,
    entropy,
    expectation,
    finite_logs,
    kl_divergence,
    total_variation,
)
from shatter.types import Array, Metrics


def win_rate(log_probs: Array, ref_log_probs: Array, log_density: Array) -> Array:
    """Returns how often a population prefers a document of the policy to one of the reference.

    `E_{x ~ pi, y ~ p0} q(x) / (q(x) + q(y))`. It is linear in pi, so its maximiser is a point mass
    on one favourite document: report it together with the log score.

    Args:
      log_probs: `[D]`, log pi, nats.
      ref_log_probs: `[D]`, log p0, nats.
      log_density: `[D]`, log q of the population, nats; of two documents of density 0 each is
        preferred half of the time.

    Returns:
      `[]`, between 0 and 1; 0.5 where pi = p0.
    """
    log_density = finite_logs(log_density)
    wins = jax.nn.sigmoid(log_density[:, None] - log_density[None, :])
    log_probs, ref_log_probs = map(at_least_float32, (log_probs, ref_log_probs))
    return jnp.exp(log_probs) @ wins @ jnp.exp(ref_log_probs)


def segment_kl(segment_log_probs: Array, log_probs: Array) -> Array:
    """Returns KL(q_g || pi) for every segment g of a population.

    Args:
      segment_log_probs: `[G, D]`, log q_g, nats.
      log_probs: `[D]`, log pi, nats.

    Returns:
      `[G]`, nats.
    """
    return jax.vmap(kl_divergence, in_axes=(0, None))(segment_log_probs, log_probs)


def prediction_metrics(log_probs: Array, ref_log_probs: Array, log_density: Array) -> Metrics:
    """Returns the measures of a prediction that every experiment reports.

    Args:
      log_probs: `[D]`, log pi of the prediction, which for an ensemble is its mixture, nats.
      ref_log_probs: `[D]`, log p0 of the pretrained model, nats.
      log_density: `[D]`, log q of the population, nats, normalised.

    Returns:
      "kl" = KL(q || pi), "total_variation", "entropy" of pi, "log_score" = E_q log pi, "win_rate"
      against the pretrained model.
    """
    return {
        "kl": kl_divergence(log_density, log_probs),
        "total_variation": total_variation(log_density, log_probs),
        "entropy": entropy(log_probs),
        "log_score": expectation(log_density, log_probs),
        "win_rate": win_rate(log_probs, ref_log_probs, log_density),
    }
