"""Which query to ask: where candidates come from, and how a query, or a batch, is chosen."""

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
from shatter.exploration.queries import (
    boltzmann_queries,
    double_thompson_queries,
    thompson_queries,
    uniform_queries,
)
from shatter.exploration.query_information import (
    conditional_information_gain,
    infomax_queries,
    joint_infomax_queries,
    joint_information_gain,
    query_information_gain,
    query_variance,
    variance_queries,
)
from shatter.exploration.sampling import boltzmann, greedy, uniform
from shatter.exploration.thompson import double_thompson, double_thompson_sampled, thompson

__all__ = [
    "Candidates",
    "boltzmann",
    "boltzmann_queries",
    "conditional_information_gain",
    "distinct",
    "double_thompson",
    "double_thompson_queries",
    "double_thompson_sampled",
    "drawn_candidates",
    "greedy",
    "infomax",
    "infomax_queries",
    "information_gain",
    "joint_infomax_queries",
    "joint_information_gain",
    "log_ratio_variance",
    "pool_candidates",
    "query_information_gain",
    "query_variance",
    "sampled_candidates",
    "thompson",
    "thompson_queries",
    "ucb",
    "uniform",
    "uniform_queries",
    "variance",
    "variance_queries",
]
