"""How people choose among responses: choice rules and raters, without any language model."""

from shatter.choice.luce import davidson_log_probs, luce_log_prob, luce_log_probs, luce_sample
from shatter.choice.plackett_luce import (
    plackett_luce_log_prob,
    plackett_luce_sample,
    ranks_log_prob,
)
from shatter.choice.raters import (
    choice_ranks,
    dichotomy_rater,
    luce_rater,
    mixture_rater,
    plackett_luce_rater,
    recorded_choice_rater,
    recorded_ranking_rater,
    recorded_vote_rater,
    segment_rater,
    table_utility,
)

__all__ = [
    "choice_ranks",
    "davidson_log_probs",
    "dichotomy_rater",
    "luce_log_prob",
    "luce_log_probs",
    "luce_rater",
    "luce_sample",
    "mixture_rater",
    "plackett_luce_log_prob",
    "plackett_luce_rater",
    "plackett_luce_sample",
    "ranks_log_prob",
    "recorded_choice_rater",
    "recorded_ranking_rater",
    "recorded_vote_rater",
    "segment_rater",
    "table_utility",
]
