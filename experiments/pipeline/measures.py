"""Exact measures of who speaks, and of what its reward would make of the pretrained model."""

import jax
import jax.numpy as jnp

from experiments.pipeline.world import Problem, greedy_document
from shatter import evaluation, numerics
from shatter.types import Array, Metrics


def measure(
    problem: Problem,
    space: tuple[Array, Array],
    law: Array,
    rewards: Array,
    *,
    vocab_size: int,
    beta: float,
) -> Metrics:
    """Returns the measures of one algorithm after a round.

    Args:
      problem: the problem.
      space: tokens and mask of all documents.
      law: `[D]`, log-probs of who speaks: the policy, or the members' mixture.
      rewards: `[D]`, what has been learned as a reward; log pi is ILHF's.
      vocab_size: V.
      beta: temperature of the read-out.

    Returns:
      Those of `evaluation.prediction_metrics`; "win_greedy", by the rater, of greedy decoding over
      the pretrained model's, "win_best" of the likeliest document over the same, and "win_ceiling"
      of the population's favourite; "kl_from_pretrained". Of the read-out p0 exp(r / beta) / Z:
      "readout_kl" from the population, "readout_win_rate", "readout_win_greedy", "readout_entropy",
      and "limit_kl" = KL(p0 q^(1 / beta) / Z || read-out), which is 0 once r is log q;
      "population_to_limit" = KL(q || p0 q^(1 / beta) / Z), which no label lowers.
    """
    log_p0, log_q = problem.log_p0, problem.log_q
    start = log_q[greedy_document(log_p0, space, vocab_size)]
    wins = lambda document: jax.nn.sigmoid(log_q[document] - start)
    readout, _ = evaluation.posterior_optimum(log_p0, rewards, beta=beta)
    limit, _ = evaluation.posterior_optimum(log_p0, log_q, beta=beta)
    return {
        **evaluation.prediction_metrics(law, log_p0, log_q),
        "win_greedy": wins(greedy_document(law, space, vocab_size)),
        "win_best": wins(jnp.argmax(law)),
        "win_ceiling": wins(jnp.argmax(log_q)),
        "kl_from_pretrained": numerics.kl_divergence(law, log_p0),
        "readout_kl": numerics.kl_divergence(log_q, readout),
        "readout_win_rate": evaluation.win_rate(readout, log_p0, log_q),
        "readout_win_greedy": wins(greedy_document(readout, space, vocab_size)),
        "readout_entropy": numerics.entropy(readout),
        "limit_kl": numerics.kl_divergence(limit, readout),
        "population_to_limit": numerics.kl_divergence(log_q, limit),
    }
