"""How well the members' shares of a prompt's options predict the people who judge."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter import ensembles, numerics
from shatter.types import Array, Metrics


class Judges(NamedTuple):
    """The held-out people of one division, by whom a model is judged.

    Attributes:
      truth: `[P, K]`, their shares; 0 where there is no option.
      wins: `[P, K, K]`, their pairwise choices.
    """

    truth: Array
    wins: Array


def measures(judges: Judges, members: Array, valid: Array, judged: Array) -> Metrics:
    """Compares the mixture of the members' shares with the judges' shares and choices.

    Args:
      judges: the people who judge.
      members: `[M, P, K]`, each member's log-prob of every option, nats.
      valid: bool `[P, K]`, false where there is no option.
      judged: `[P]`, the weight of each prompt in the measures, sums to 1.

    Returns:
      By name, `[]`: "kl", KL(judges' shares || prediction), nats; "choice_log_loss", nats a choice
      of one of two options; "best_known", the part of the prompts whose most popular option is
      known; "entropy" of the prediction, nats; "leak", the probability outside the options. And
      "prediction", `[P, K]`, the shares renormalised over the options.
    """
    log_mass = jax.nn.logsumexp(members, axis=-1, keepdims=True)
    shares = ensembles.mixture_log_probs(members - log_mass)  # renormalised over the options
    finite = jnp.where(valid, shares, 0.0)
    kl = numerics.kl_divergence(jnp.log(judges.truth), finite)
    log_odds = finite[:, :, None] - finite[:, None, :]
    pair_loss = -jnp.sum(judges.wins * jax.nn.log_sigmoid(log_odds), axis=(1, 2))
    hits = jnp.argmax(shares, axis=1) == jnp.argmax(judges.truth, axis=1)
    return {
        "kl": jnp.sum(judged * kl),
        "choice_log_loss": jnp.sum(pair_loss) / jnp.sum(judges.wins),
        "best_known": jnp.sum(judged * hits),
        "entropy": jnp.sum(judged * numerics.entropy(shares)),
        "leak": 1.0 - jnp.sum(judged * jnp.mean(jnp.exp(log_mass[..., 0]), axis=0)),
        "prediction": jnp.exp(shares),
    }
