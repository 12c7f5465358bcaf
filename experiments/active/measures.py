"""How well the members predict the votes on held-out pairs, and how far they disagree."""

import jax
import jax.numpy as jnp

from experiments.active.splits import Votes
from shatter import ensembles, evaluation
from shatter.cli.common.agreement import agreement
from shatter.numerics import finite_logs
from shatter.types import Array, Key, Metrics

JOINT_DRAWS = 256


def measures(key: Key, utilities: Array, known: Votes, new: Votes, joint: Votes) -> Metrics:
    """Judges the members by held-out pairs.

    Args:
      key: draws the joint labels; the same for all rounds and arms.
      utilities: `[M, E]`, of the texts, nats.
      known: pairs of texts that the pool has too, with votes.
      new: pairs of texts that the pool does not have, with votes.
      joint: pairs by which the joint log-loss and the disagreement are measured; each has votes
        that decide.

    Returns:
      Of known and of new pairs, for the mixture of the members: log_loss, nats a vote that decides;
      calibration_error, per such vote; accuracy, over pairs with a majority. Of new pairs also the
      bins of the calibration, `[BINS]`: predicted (sum of P(first)), observed (votes for the first)
      and count (votes). joint_log_loss, of 10 labels of 2 pairs, nats. disagreement, nats.
    """
    of_known, of_new = (_marginal(utilities, part) for part in (known, new))
    members = utilities[:, joint.items]
    votes = joint.votes[:, :2]
    law = finite_logs(jnp.log(votes / jnp.sum(votes, axis=-1, keepdims=True)))
    draws = jax.vmap(lambda key: evaluation.dyadic_joint_log_loss(key, members, law))(
        jax.random.split(key, JOINT_DRAWS)
    )
    return {
        **{f"known_{name}": value for name, value in of_known.items() if value.ndim == 0},
        **{f"new_{name}": value for name, value in of_new.items()},
        "joint_log_loss": jnp.mean(draws),
        "disagreement": evaluation.disagreement(members),
    }


def _marginal(utilities: Array, part: Votes) -> Metrics:
    """Returns the measures of the members' mixture, pair by pair."""
    gaps = utilities[:, part.items[:, 0]] - utilities[:, part.items[:, 1]]
    log_first = ensembles.mixture_log_probs(jax.nn.log_sigmoid(gaps))
    log_second = ensembles.mixture_log_probs(jax.nn.log_sigmoid(-gaps))
    first, second = jnp.moveaxis(part.votes[:, :2], -1, 0)
    found = agreement(log_first, log_second, first, second)
    num_votes = jnp.maximum(jnp.sum(first + second), 1.0)
    num_majorities = jnp.maximum(jnp.sum(found.has_majority), 1)
    return {
        "log_loss": jnp.sum(found.losses) / num_votes,
        "accuracy": jnp.sum(found.has_majority * found.is_right) / num_majorities,
        "calibration_error": found.calibration_gap / num_votes,
        "predicted": found.predicted,
        "observed": found.observed,
        "count": found.count,
    }
