"""Which query to ask: where candidates come from, how much they would tell, how arms choose."""

from shatter.exploration.arms import PairArm, QueryArm
from shatter.exploration.beliefs import Belief, linear_belief, members_belief, shrinkage
from shatter.exploration.candidates import (
    distinct,
    drawn_candidates,
    pool_candidates,
    sampled_candidates,
)
from shatter.exploration.pair_design import v_optimal, v_optimal_batch
from shatter.exploration.pair_information import (
    infomax,
    law_infomax,
    log_ratio_variance,
    mass_weighted_variance,
    variance,
)
from shatter.exploration.pair_optimism import delta_ucb, information_directed, ucb
from shatter.exploration.pair_sampling import boltzmann, greedy, uniform
from shatter.exploration.pair_thompson import double_thompson, double_thompson_sampled, thompson
from shatter.exploration.query_design import v_optimal_choices, v_optimal_queries
from shatter.exploration.query_information import (
    infomax_queries,
    joint_infomax_queries,
    variance_queries,
)
from shatter.exploration.query_optimism import delta_ucb_queries, information_directed_queries
from shatter.exploration.query_sampling import (
    boltzmann_queries,
    double_thompson_queries,
    thompson_queries,
    uniform_queries,
)
from shatter.exploration.scores import (
    conditional_information_gain,
    information_gain,
    joint_information_gain,
    law_information_gain,
    query_information_gain,
    query_variance,
)

__all__ = [
    "Belief",
    "PairArm",
    "QueryArm",
    "boltzmann",
    "boltzmann_queries",
    "conditional_information_gain",
    "delta_ucb",
    "delta_ucb_queries",
    "distinct",
    "double_thompson",
    "double_thompson_queries",
    "double_thompson_sampled",
    "drawn_candidates",
    "greedy",
    "infomax",
    "infomax_queries",
    "information_directed",
    "information_directed_queries",
    "information_gain",
    "joint_infomax_queries",
    "joint_information_gain",
    "law_infomax",
    "law_information_gain",
    "linear_belief",
    "log_ratio_variance",
    "mass_weighted_variance",
    "members_belief",
    "pool_candidates",
    "query_information_gain",
    "query_variance",
    "sampled_candidates",
    "shrinkage",
    "thompson",
    "thompson_queries",
    "ucb",
    "uniform",
    "uniform_queries",
    "v_optimal",
    "v_optimal_batch",
    "v_optimal_choices",
    "v_optimal_queries",
    "variance",
    "variance_queries",
]
