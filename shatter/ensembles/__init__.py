"""Ensembles, by one protocol: from an index to a plausible language model."""

from shatter.ensembles.adapters import adapters, mean_adapters, whole_adapters
from shatter.ensembles.base import (
    anchor_penalty,
    gaussian_draws,
    mixture_log_probs,
    prior_scale_for,
)
from shatter.ensembles.epinet import EpinetMember, epinet
from shatter.ensembles.heads import heads
from shatter.ensembles.hierarchy import hierarchy_penalty
from shatter.ensembles.independent import (
    PriorFunction,
    anchored,
    point_estimate,
    prior_functions,
)
from shatter.ensembles.laplace import Laplace, draw_members, fit_laplace, laplace_covariance
from shatter.ensembles.prior_heads import PriorHead, prior_heads
from shatter.types import Ensemble

__all__ = [
    "Ensemble",
    "EpinetMember",
    "Laplace",
    "PriorFunction",
    "PriorHead",
    "adapters",
    "anchor_penalty",
    "anchored",
    "draw_members",
    "epinet",
    "fit_laplace",
    "gaussian_draws",
    "heads",
    "hierarchy_penalty",
    "laplace_covariance",
    "mean_adapters",
    "mixture_log_probs",
    "point_estimate",
    "prior_functions",
    "prior_heads",
    "prior_scale_for",
    "whole_adapters",
]
