"""Which query to ask: where candidates come from, and how a query is chosen among them."""

from shatter.exploration.candidates import (
    Candidates,
    distinct,
    drawn_candidates,
    pool_candidates,
    sampled_candidates,
)
from shatter.exploration.information import (
    infomax,
    information_gain,
    log_ratio_variance,
    variance,
)
from shatter.exploration.optimism import ucb
from shatter.exploration.sampling import boltzmann, greedy, uniform
from shatter.exploration.thompson import double_thompson, double_thompson_sampled, thompson

__all__ = [
    "Candidates",
    "boltzmann",
    "distinct",
    "double_thompson",
    "double_thompson_sampled",
    "drawn_candidates",
    "greedy",
    "infomax",
    "information_gain",
    "log_ratio_variance",
    "pool_candidates",
    "sampled_candidates",
    "thompson",
    "ucb",
    "uniform",
    "variance",
]
