"""The evaluation of a run, and what its steps read of the frozen model."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shatter.cli.common.binary import UsageError
from shatter.cli.common.people import Person, split_scores
from shatter.cli.finetune import measures, reference, scoring
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.divergences import make_divergences
from shatter.cli.finetune.history import Record
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.task import Task


class Evaluation(NamedTuple):
    """The measures of a model.

    Attributes:
      metrics: a part of a row of the metrics.
      people: how well each person's answers are predicted, by the name of the held-out rows.
    """

    metrics: Record
    people: dict[str, list[Person]]


Evaluate = Callable[[Trainable], Evaluation]
"""Measures a model."""


class Prepared(NamedTuple):
    """What is computed of the frozen model before training.

    Attributes:
      evaluate: measures a model on the held-out comparisons, and its divergences from the frozen
        model.
      ref_log_probs: log-probs of the training rows under the reference, `[rows, K]`, nats.
      frozen: what a training step reads and does not train.
    """

    evaluate: Evaluate
    ref_log_probs: np.ndarray
    frozen: Frozen


def prepare(config: Config, task: Task, progress: Callable[[str, int], None]) -> Prepared:
    """Scores the data with the frozen model and samples from it, as far as the objective needs it.

    Args:
      config: the config.
      task: the model and the comparisons.
      progress: called with a message and 0 steps.

    Returns:
      What steps and evaluations read.

    Raises:
      UsageError: if the log-probs in the cache are not the model's.
    """
    model = task.model
    splits = {name: split.encoded for name, split in task.splits.items()}
    if config.objective == "reward_model":  # it does not end as a language model: no reference
        refs = {name: reference.no_reference(encoded) for name, encoded in splits.items()}
        frozen = Frozen(None if model.lora is None else model.params, None)
        return Prepared(make_evaluate(config, task, refs), refs["train"], frozen)
    progress("scoring the data with the reference (kept for the next run)", 0)
    refs = reference.reference_log_probs(config, model, splits)
    reference.check_reference(config, model, task.train.encoded, refs["train"])
    progress("sampling from the reference", 0)
    divergences, samples = make_divergences(config, task)
    reads = model.lora is not None or config.kl_weight > 0
    frozen = Frozen(model.params if reads else None, samples if config.kl_weight else None)
    held_out = make_evaluate(config, task, refs)

    def evaluate(trainable: Trainable) -> Evaluation:
        found = held_out(trainable)
        return found._replace(metrics=found.metrics | divergences(trainable))

    return Prepared(evaluate, refs["train"], frozen)


def make_evaluate(config: Config, task: Task, refs: dict[str, np.ndarray]) -> Evaluate:
    """Makes a function that measures a model on the held-out comparisons.

    Args:
      config: the config.
      task: the model and the comparisons.
      refs: log-probs of the held-out rows under the reference, `[rows, K]` by name, nats.

    Returns:
      `trainable -> evaluation`; it raises a `UsageError` if the model's scores are not finite.
    """
    model, utilities = task.model, scoring.make_utilities(config, task.model)

    def evaluate(trainable: Trainable) -> Evaluation:
        metrics: Record = {}
        people: dict[str, list[Person]] = {}
        pretrained = None if model.lora is None else model.params
        for name, split in task.held_out.items():
            values = utilities(trainable, pretrained, split.encoded, refs[name])
            if not np.isfinite(values).all():
                raise UsageError(
                    f"the model's scores of {name} are not finite: the run went astray; lower "
                    "--learning_rate, or go on from an earlier checkpoint with another"
                )
            rows = [row.row for row in split.encoded]
            scores, persons = split_scores(rows, values, min_group_size=config.min_group_size)
            if persons:
                people[name] = persons
            if config.objective == "sft":
                scores |= measures.demonstration_scores(split.encoded, values)
            metrics |= {f"eval_{name}/{measure}": value for measure, value in scores.items()}
        return Evaluation(metrics, people)

    return evaluate
