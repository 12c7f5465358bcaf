"""Reads files of preferences and turns them into batches of tokens."""

from shatter.data.batches import Batch, batches, blank, collate, length_buckets, plan_batches
from shatter.data.conditions import (
    ConditionOn,
    Conditions,
    Shown,
    condition_held_out,
    condition_training,
    group_sizes,
    learn_conditions,
)
from shatter.data.encoding import Encoded, encode_prompts, encode_rows
from shatter.data.layouts import DEMONSTRATED, LABELLED_FALSE, LABELLED_TRUE
from shatter.data.people import best_place, with_annotator, with_examples, with_group
from shatter.data.rendering import TextTokenizer
from shatter.data.report import Problem, Report, RowsError
from shatter.data.rows import Row, read_rows, write_rows
from shatter.data.selection import comparisons, demonstrations, pair_labels, without_preference
from shatter.data.truncation import truncate_prompt

__all__ = [
    "DEMONSTRATED",
    "LABELLED_FALSE",
    "LABELLED_TRUE",
    "Batch",
    "ConditionOn",
    "Conditions",
    "Encoded",
    "Problem",
    "Report",
    "Row",
    "RowsError",
    "Shown",
    "TextTokenizer",
    "batches",
    "best_place",
    "blank",
    "collate",
    "comparisons",
    "condition_held_out",
    "condition_training",
    "demonstrations",
    "encode_prompts",
    "encode_rows",
    "group_sizes",
    "learn_conditions",
    "length_buckets",
    "pair_labels",
    "plan_batches",
    "read_rows",
    "truncate_prompt",
    "with_annotator",
    "with_examples",
    "with_group",
    "without_preference",
    "write_rows",
]
