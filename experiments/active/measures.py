"""How well the members predict the votes on held-out pairs, and how far they disagree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.active.splits import Votes
from shatter import evaluation
from shatter.cli.common.agreement import agreement
from shatter.numerics import finite_logs
from shatter.types import Array, Key, Metrics

JOINT_DRAWS = 256


def measures(
    key: Key,
    choices: Callable[[Array], Array],
    members: Callable[[Array], Array],
    known: Votes | None,
    new: Votes,
    joint: Votes,
) -> Metrics:
    """Judges a learner by held-out pairs.

    Args:
      key: draws the joint labels; the same for all rounds and arms.
      choices: `(items[P, 2]) -> [P, 2]`, the predicted log-probs of both texts of pairs.
      members: `(items[P, 2]) -> [M, P, 2]`, the members' utilities, nats.
      known: pairs of texts that the pool has too, with votes; None = its measures are left out.
      new: pairs of texts that the pool does not have, with votes.
      joint: pairs by which the joint log-loss and the disagreement are measured; each has votes
        that decide.

    Returns:
      Of known and of new pairs, for the prediction: log_loss, nats a vote that decides; brier, the
      mean squared error of the first's probability, per such vote; calibration_error, per such
      vote; accuracy, over pairs with a majority. Of new pairs also the
      bins of the calibration, `[BINS]`: predicted (sum of P(first)), observed (votes for the first)
      and count (votes). joint_log_loss, of 10 labels of 2 pairs, nats. disagreement, nats.
    """
    of_new = _marginal(choices(new.items), new)
    of_known = _marginal(choices(known.items), known) if known is not None else {}
    utilities = members(joint.items)
    votes = joint.votes[:, :2]
    law = finite_logs(jnp.log(votes / jnp.sum(votes, axis=-1, keepdims=True)))
    draws = jax.vmap(lambda key: evaluation.dyadic_joint_log_loss(key, utilities, law))(
        jax.random.split(key, JOINT_DRAWS)
    )
    return {
        **{f"known_{name}": value for name, value in of_known.items() if value.ndim == 0},
        **{f"new_{name}": value for name, value in of_new.items()},
        "joint_log_loss": jnp.mean(draws),
        "disagreement": evaluation.disagreement(utilities),
    }


def _marginal(log_probs: Array, part: Votes) -> Metrics:
    """Returns the measures of predicted log-probs `[P, 2]`, pair by pair."""
    log_first, log_second = log_probs[:, 0], log_probs[:, 1]
    first, second = jnp.moveaxis(part.votes[:, :2], -1, 0)
    found = agreement(log_first, log_second, first, second)
    num_votes = jnp.maximum(jnp.sum(first + second), 1.0)
    num_majorities = jnp.maximum(jnp.sum(found.has_majority), 1)
    return {
        "brier": (first @ jnp.exp(2 * log_second) + second @ jnp.exp(2 * log_first)) / num_votes,
        "log_loss": jnp.sum(found.losses) / num_votes,
        "accuracy": jnp.sum(found.has_majority * found.is_right) / num_majorities,
        "calibration_error": found.calibration_gap / num_votes,
        "predicted": found.predicted,
        "observed": found.observed,
        "count": found.count,
    }
