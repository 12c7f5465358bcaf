"""Learners and the interaction. They take algorithms as functions and import none."""

from shatter.training.interaction import Interaction, InteractionState, interaction
from shatter.training.members import Members, MembersLearner, members_learner
from shatter.training.proposers import (
    Propose,
    asked,
    batch_proposer,
    pair_proposer,
    query_proposer,
    take_responses,
)
from shatter.training.rounds import ask, ask_together, run_rounds
from shatter.training.sharding import (
    axis_size,
    make_mesh,
    mesh_sizes,
    place,
    put,
    put_rows,
    rows_of_process,
    shardings_of,
)
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
    "ask_together",
    "asked",
    "axis_size",
    "batch_proposer",
    "empty_store",
    "interaction",
    "learner",
    "make_mesh",
    "members_learner",
    "mesh_sizes",
    "pair_proposer",
    "place",
    "put",
    "put_rows",
    "query_proposer",
    "rows_of_process",
    "run_rounds",
    "sample_comparisons",
    "shardings_of",
    "take_responses",
]
