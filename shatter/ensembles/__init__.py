"""An index -> a plausible language model."""

from shatter.ensembles.base import Ensemble, anchor_penalty, gaussian_draws, mixture_log_probs
from shatter.ensembles.independent import (
    PriorFunction,
    anchored,
    point_estimate,
    prior_functions,
)

__all__ = [
    "Ensemble",
    "PriorFunction",
    "anchor_penalty",
    "anchored",
    "gaussian_draws",
    "mixture_log_probs",
    "point_estimate",
    "prior_functions",
]
