"""How good a model is: against the population, against held-out choices, and over time."""

from shatter.evaluation.laws import prediction_metrics, segment_kl, win_rate
from shatter.evaluation.predictions import (
    choice_log_loss,
    dyadic_inputs,
    dyadic_joint_log_loss,
    joint_log_loss,
    marginal_log_loss,
)
from shatter.evaluation.queries import bootstrap_interval, queries_to_level
from shatter.numerics import entropy, kl_divergence, total_variation

__all__ = [
    "bootstrap_interval",
    "choice_log_loss",
    "dyadic_inputs",
    "dyadic_joint_log_loss",
    "entropy",
    "joint_log_loss",
    "kl_divergence",
    "marginal_log_loss",
    "prediction_metrics",
    "queries_to_level",
    "segment_kl",
    "total_variation",
    "win_rate",
]
