"""Learners and the interaction; receives callables, imports no algorithm."""

from shatter.training.interaction import (
    Interaction,
    InteractionState,
    ask,
    interaction,
    run_rounds,
)
from shatter.training.members import Members, MembersLearner, members_learner
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
    "Store",
    "TrainState",
    "add_comparisons",
    "ask",
    "empty_store",
    "interaction",
    "learner",
    "members_learner",
    "run_rounds",
    "sample_comparisons",
]
