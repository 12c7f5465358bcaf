"""Samples of a target law without training: importance weights, rejection, SMC, constraints."""

from shatter.inference.constraints import fit_moments, moment_target, pointwise_target
from shatter.inference.importance import (
    check_weights,
    effective_sample_size,
    importance_kl,
    log_evidence,
    resample,
    snis_expectation,
)
from shatter.inference.rejection import Rejection, rejection_sample
from shatter.inference.smc import Particles, smc, weighted_decoding
from shatter.inference.twists import Twist, TwistModel, exact_twist

__all__ = [
    "Particles",
    "Rejection",
    "Twist",
    "TwistModel",
    "check_weights",
    "effective_sample_size",
    "exact_twist",
    "fit_moments",
    "importance_kl",
    "log_evidence",
    "moment_target",
    "pointwise_target",
    "rejection_sample",
    "resample",
    "smc",
    "snis_expectation",
    "weighted_decoding",
]
