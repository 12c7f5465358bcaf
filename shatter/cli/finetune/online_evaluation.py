"""The evaluation of runs that learn from a reward: mean reward and KL on held-out prompts."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from shatter import data
from shatter.cli.finetune import scoring
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.evaluation import Evaluate, Evaluation
from shatter.cli.finetune.history import Record
from shatter.cli.finetune.learning import Trainable
from shatter.cli.finetune.online import deviation
from shatter.cli.finetune.rewards import score_all
from shatter.cli.finetune.rollouts import Rollouts, completions_of, make_draw
from shatter.cli.finetune.task import Task
from shatter.types import Key

_EVALUATION = 0x6576616C
"""Folded into the seed's key, so that no key serves twice."""


def make_evaluate(config: Config, task: Task) -> Evaluate:
    """Makes a function that measures a model by one completion of each held-out prompt.

    Without held-out files the first `--kl_samples` prompts of training are taken. The keys are
    those of the seed, so that models are compared on the same random numbers.

    Args:
      config: the config.
      task: the model and the prompts.

    Returns:
      `trainable -> evaluation`.
    """
    splits = {name: split.encoded for name, split in task.held_out.items()}
    splits = splits or {"train": task.train.encoded[: config.kl_samples]}
    draw = make_draw(config, task.model, 1)
    root = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION)

    def evaluate(trainable: Trainable) -> Evaluation:
        metrics: Record = {}
        for name, encoded in splits.items():
            found = _evaluate(config, task, partial(draw, trainable), root, encoded)
            metrics |= {f"eval_{name}/{measure}": value for measure, value in found.items()}
        return Evaluation(metrics, {})

    return evaluate


def _evaluate(
    config: Config,
    task: Task,
    draw: Callable[..., Rollouts],
    root: Key,
    encoded: Sequence[data.Encoded],
) -> Record:
    """Returns mean reward, KL and length over prompts, with standard errors."""
    columns: dict[str, list[np.ndarray]] = {}
    for number, (length, rows) in enumerate(scoring.held_out_plan(config, encoded)):
        prompts = [encoded[n if n >= 0 else rows[0]] for n in rows]
        rollouts = draw(jax.random.fold_in(root, number), prompts, length)
        is_real = rows >= 0
        completions = completions_of(task.model, prompts, rollouts)
        kept = [c for c, is_own in zip(completions, is_real, strict=True) if is_own]
        rewards, each = score_all(task.rewards, kept)
        log_ratio = np.asarray(rollouts.log_probs) - np.asarray(rollouts.ref_log_probs)
        found = {"reward": rewards, "kl": log_ratio.sum(-1)[is_real, 0]}
        found |= {"completions/mean_length": np.asarray(rollouts.mask).sum(-1)[is_real, 0]}
        if len(each) > 1:
            found |= {f"rewards/{name}": values for name, values in each.items()}
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    record: Record = {}
    for name, parts in columns.items():
        values = np.concatenate(parts).astype(np.float64)
        record[name] = float(values.mean())
        if name in ("reward", "kl"):
            record[f"{name}_standard_error"] = deviation(values) / len(values) ** 0.5
    return record
