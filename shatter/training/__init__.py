"""Learners and the interaction. They take algorithms as functions and import none."""

from shatter.training.interaction import (
    Interaction,
    InteractionState,
    ask,
    interaction,
    run_rounds,
)
from shatter.training.members import Members, MembersLearner, members_learner
from shatter.training.proposers import Propose, asked, pair_proposer, query_proposer
from shatter.training.step import Accumulated, Learner, Objective, TrainState, learner
from shatter.training.store import Store, add_comparisons, empty_store, sample_comparisons

__all__ = [
    "Accumulated",
    "Interaction",
    "InteractionState",
    "Learner",
    "Members",
    "MembersLearner",
    "Objective",
    "Propose",
    "Store",
    "TrainState",
    "add_comparisons",
    "ask",
    "asked",
    "empty_store",
    "interaction",
    "learner",
    "members_learner",
    "pair_proposer",
    "query_proposer",
    "run_rounds",
    "sample_comparisons",
]
