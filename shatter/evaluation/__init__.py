"""Measures of a model against the population, against held-out choices, and over time."""

from shatter.evaluation.forecast import (
    LEAST_AUDITS,
    Claims,
    Curves,
    Share,
    claims,
    labels_to,
    learning_curves,
    loss_after,
    real_share,
)
from shatter.evaluation.laws import prediction_metrics, segment_kl, win_rate
from shatter.evaluation.optima import (
    best_of_n_log_probs,
    dpo_optimum,
    ipo_optimum,
    posterior_optimum,
    reward_kl_frontier,
    reward_optimum,
)
from shatter.evaluation.predictions import (
    disagreement,
    dyadic_inputs,
    dyadic_joint_log_loss,
    joint_log_loss,
    marginal_log_loss,
)
from shatter.evaluation.queries import bootstrap_interval, queries_to_level
from shatter.evaluation.soft_labels import (
    choice_errors,
    manhattan_distance,
    person_error_rates,
    person_means,
    soft_cross_entropy,
    soft_kl,
)

__all__ = [
    "LEAST_AUDITS",
    "Claims",
    "Curves",
    "Share",
    "best_of_n_log_probs",
    "bootstrap_interval",
    "choice_errors",
    "claims",
    "disagreement",
    "dpo_optimum",
    "dyadic_inputs",
    "dyadic_joint_log_loss",
    "ipo_optimum",
    "joint_log_loss",
    "labels_to",
    "learning_curves",
    "loss_after",
    "manhattan_distance",
    "marginal_log_loss",
    "person_error_rates",
    "person_means",
    "posterior_optimum",
    "prediction_metrics",
    "queries_to_level",
    "real_share",
    "reward_kl_frontier",
    "reward_optimum",
    "segment_kl",
    "soft_cross_entropy",
    "soft_kl",
    "win_rate",
]
