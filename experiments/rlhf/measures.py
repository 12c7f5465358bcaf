"""Exact measures of a trained law, and of the exact posterior of a learned reward."""

import jax
import jax.numpy as jnp

from experiments.rlhf.domains import Domain, Problem
from experiments.rlhf.objectives import Objective
from shatter import evaluation
from shatter.numerics import expectation, kl_divergence
from shatter.types import Array, Metrics

LEAST_SHARE = 1e-3  # the share that a response nobody chose counts as, where its log is needed


def measure(
    domain: Domain, objective: Objective, problem: Problem, log_probs: Array, beta: Array
) -> Metrics:
    """Returns exact measures of a law over the documents of every prompt, means over prompts.

    Args:
      domain: the domain.
      objective: the objective that led to the law.
      problem: the problem.
      log_probs: `[P, D]`, log pi, nats.
      beta: `[]`, KL coefficient.

    Returns:
      "kl" = KL(q || pi), "total_variation", "entropy", "log_score" = E_q log pi, "win_rate" against
      the pretrained model, "gold_reward" = E_pi log q with shares of at least 0.001,
      "kl_from_pretrained" = KL(pi || p0), "kl_NAME" for every segment; "optimum_kl" = KL(optimum ||
      pi) where the objective's optimum has a closed form.
    """
    metrics = jax.vmap(evaluation.prediction_metrics)(log_probs, problem.log_p0, problem.log_q)
    metrics["gold_reward"] = expectation(log_probs, gold_rewards(problem))
    metrics["kl_from_pretrained"] = kl_divergence(log_probs, problem.log_p0)
    if objective.optimum is not None:
        metrics["optimum_kl"] = kl_divergence(objective.optimum(problem, beta), log_probs)
    for name, segment in zip(domain.segments, problem.segments, strict=True):
        metrics[f"kl_{name}"] = kl_divergence(segment, log_probs)
    return {name: jnp.mean(values) for name, values in metrics.items()}


def gold_rewards(problem: Problem) -> Array:
    """Returns the population's own reward, log q with shares of at least 0.001, `[P, D]`."""
    return jnp.maximum(problem.log_q, jnp.log(LEAST_SHARE))


def over_optimisation(problem: Problem, rewards: Array, betas: Array) -> Metrics:
    """Returns what the exact posterior of a learned reward is worth as beta falls, `[N]` each.

    Args:
      problem: the problem.
      rewards: `[P, D]`, learned.
      betas: `[N]`.

    Returns:
      "kl_curve" = KL(p* || p0), "gold_curve" = E_p* log q, "learned_curve" = E_p* of the learned
      reward, means over prompts.
    """

    def at_beta(beta: Array) -> Metrics:
        law = evaluation.posterior_optimum(problem.log_p0, rewards, beta=beta)[0]
        return {
            "kl_curve": jnp.mean(kl_divergence(law, problem.log_p0)),
            "gold_curve": jnp.mean(expectation(law, gold_rewards(problem))),
            "learned_curve": jnp.mean(expectation(law, rewards)),
        }

    return jax.lax.map(at_beta, betas)
