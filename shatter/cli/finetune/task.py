"""The task of a run: the pretrained model and the comparisons in tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from shatter import data
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import places
from shatter.cli.finetune.config import ONLINE, Config
from shatter.cli.finetune.pretrained import Pretrained, load_model
from shatter.cli.finetune.prompts import load_prompts
from shatter.cli.finetune.reward_models import open_rewards
from shatter.cli.finetune.rewards import Reward

AS_EVERYBODY = "_as_everybody"
"""The end of the name of held-out rows whose prompts do not say who answers, beside those that
do."""


class Split(NamedTuple):
    """Comparisons in tokens, and a report of what happened to the rows on the way."""

    encoded: list[data.Encoded]
    report: data.Report


class Training(NamedTuple):
    """Comparisons to learn from. Different answers to one comparison share its forward pass.

    Attributes:
      encoded: N different comparisons.
      ranks: int32 `[N, A, K]`, the answers to each; -1 in empty slots and where there is no answer.
      weight: float32 `[N, A]`, how many people gave each answer; 0 where there is no answer.
      report: what happened to the rows on the way.
    """

    encoded: list[data.Encoded]
    ranks: np.ndarray
    weight: np.ndarray
    report: data.Report


class Task(NamedTuple):
    """A pretrained model, and comparisons for it.

    Attributes:
      model: the pretrained model.
      train: the comparisons to learn from.
      held_out: the comparisons to evaluate by, by name.
      people: counts of how prompts say who answers, by name; empty if they do not.
      rewards: what rewards completions, for objectives that learn from them; their rows are
        prompts.
    """

    model: Pretrained
    train: Training
    held_out: dict[str, Split]
    people: Mapping[str, data.Shown] = MappingProxyType({})
    rewards: tuple[Reward, ...] = ()

    @property
    def splits(self) -> dict[str, Split | Training]:
        """All comparisons by name, those to learn from under "train"."""
        return {"train": self.train, **self.held_out}


def load_task(config: Config) -> Task:
    """Opens the model, reads the files of comparisons and encodes them.

    Raises:
      UsageError: naming the file, the row and the field, or the flag, that cannot be used.
    """
    places.mesh_of(config)
    model = load_model(config)
    places.check_mesh(config, model.params)
    if config.objective in ONLINE:
        return _prompts_task(config, model)
    rows: dict[str, list[data.Row]] = {}
    reports: dict[str, data.Report] = {}
    rows["train"], reports["train"] = _read(config, config.dataset_name)
    for name, file in _names(config.eval_dataset_name).items():
        rows[name], reports[name] = _read(config, file, "--eval_dataset_name")
    return make_task(config, model, rows, reports)


def _prompts_task(config: Config, model: Pretrained) -> Task:
    """Opens the rewards and the files of prompts."""
    rewards = open_rewards(config, model)
    encoded, report = load_prompts(config, model, config.dataset_name, "--dataset_name")
    ranks, weight = np.zeros((len(encoded), 1, 1), np.int32), np.ones((len(encoded), 1), np.float32)
    held_out = {
        name: Split(*load_prompts(config, model, file, "--eval_dataset_name"))
        for name, file in _names(config.eval_dataset_name).items()
    }
    train = Training(encoded, ranks, weight, report)
    return Task(model, train, held_out, rewards=rewards)


def make_task(
    config: Config,
    model: Pretrained,
    rows: dict[str, list[data.Row]],
    reports: dict[str, data.Report],
) -> Task:
    """Encodes comparisons that are already read.

    Args:
      config: the config.
      model: the pretrained model.
      rows: the rows to learn from under "train", and those held out under other names.
      reports: what happened to the rows of each name before.

    Returns:
      The task.

    Raises:
      UsageError: naming the row that cannot be encoded.
    """
    if config.objective != "sft":  # no other objective learns from ties
        train = [row for row in rows["train"] if not data.without_preference([row])]
        rows = {**rows, "train": train}
    splits = {
        name: _encode(config, model, name, split, reports.get(name, data.Report(len(split))))
        for name, split in rows.items()
    }
    people: dict[str, data.Shown] = {}
    if config.condition_on != "none":
        splits, people = _conditioned(config, model, splits)
    return Task(model, _merge(splits.pop("train")), splits, people)


def _conditioned(
    config: Config, model: Pretrained, splits: dict[str, Split]
) -> tuple[dict[str, Split], dict[str, data.Shown]]:
    """Says in the prompts who answers; held-out rows are there a second time as everybody's.

    A row whose prompt has no room to say it is left out in every form.
    """
    rng = np.random.default_rng(config.seed)
    length, prompt_length = config.max_length, config.max_prompt_length

    def fits(row: data.Row) -> bool:
        try:
            data.encode_rows(
                [row], model.tokenizer, max_length=length, max_prompt_length=prompt_length
            )
        except ValueError:  # the row may be bad for another reason, which its encoding will say
            return False
        return True

    rows = {name: [row.row for row in split.encoded] for name, split in splits.items()}
    found: dict[str, list[data.Row]] = {}
    people: dict[str, data.Shown] = {}
    try:
        conditions = data.learn_conditions(
            rows["train"],
            config.condition_on,
            rng,
            num_examples=config.num_examples,
            dropout=config.condition_dropout,
            min_group_size=config.min_group_size,
        )
        found["train"], people["train"] = data.condition_training(
            conditions, rows["train"], rng, fits=fits
        )
    except ValueError as error:
        raise UsageError(f"--dataset_name={config.dataset_name}: {error}") from error
    told: dict[str, Split] = {}
    for name, split in splits.items():
        if name != "train":
            found[name], people[name] = data.condition_held_out(conditions, rows[name], fits=fits)
        told[name] = _encode(config, model, name, found[name], split.report)
        if name != "train":
            twins = [row.row.origin or row.row for row in told[name].encoded]
            report = told[name].report._replace(problems=())  # they are listed under `name`
            name += AS_EVERYBODY
            told[name] = _encode(config, model, name, twins, report)
    return told, people


def unique_prompts(task: Task) -> list[np.ndarray]:
    """Returns the different prompts of the training data, in the order of their first rows."""
    return list({row.prompt.tobytes(): row.prompt for row in task.train.encoded}.values())


def _merge(split: Split) -> Training:
    """Brings together the answers to the same comparison, in the order of its first row."""
    answers: dict[tuple[Any, ...], dict[tuple[int, ...], float]] = {}
    firsts: list[data.Encoded] = []
    for row in split.encoded:
        comparison = *(ids.tobytes() for ids in (row.prompt, *row.completions)), row.skipped
        if comparison not in answers:
            firsts.append(row)
        weights = answers.setdefault(comparison, {})
        weights[row.ranks] = weights.get(row.ranks, 0.0) + row.weight
    shape = (len(answers), max(map(len, answers.values())))
    ranks = np.full((*shape, max(len(row.completions) for row in firsts)), -1, np.int32)
    weight = np.zeros(shape, np.float32)
    for n, weights in enumerate(answers.values()):
        for a, (order, total) in enumerate(weights.items()):
            ranks[n, a, : len(order)], weight[n, a] = order, total
    return Training(firsts, ranks, weight, split.report)


def _names(files: Sequence[str]) -> dict[str, str]:
    """Returns files by their names without folder and endings."""
    names = [Path(file).name.split(".")[0] for file in files]
    if bad := [name for name in names if name.endswith(AS_EVERYBODY)]:
        raise UsageError(
            f"--eval_dataset_name: names that end with {AS_EVERYBODY} are those of results, found "
            f"{bad}: rename the file"
        )
    if len(set(names)) < len(names) or "train" in names:
        raise UsageError(
            f"--eval_dataset_name: the files' names must differ and not be train, found {names}"
        )
    return dict(zip(names, files, strict=True))


def _read(
    config: Config, file: str, flag: str = "--dataset_name"
) -> tuple[list[data.Row], data.Report]:
    """Reads the rows that the objective can use; the report says what the others lack."""
    if not Path(file).exists():
        raise UsageError(
            f"{flag}: no file {file}. Pass a file of preferences (.jsonl, .jsonl.gz, .parquet)"
        )
    is_sft = config.objective == "sft"
    try:
        rows, report = data.read_rows(file, on_bad_row=config.on_bad_row)
        rows, useless = (data.demonstrations if is_sft else data.comparisons)(rows)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{flag}: {error}") from error
    problems = useless.problems
    if not is_sft and len(without := data.without_preference(rows)) == len(rows):
        problems += without
        rows = []
    if not rows:
        advice = "" if is_sft else "; pass comparisons, or --objective=sft for demonstrations"
        raise UsageError(
            f"{flag}={file}: no row can be used by --objective={config.objective}; the first: "
            f"{problems[0]}{advice}"
        )
    report = report._replace(
        skipped=report.skipped + useless.skipped, problems=report.problems + useless.problems
    )
    return rows, report


def _encode(
    config: Config, model: Pretrained, name: str, rows: list[data.Row], report: data.Report
) -> Split:
    try:
        encoded, report = data.encode_rows(
            rows,
            model.tokenizer,
            max_length=config.max_length,
            max_prompt_length=config.max_prompt_length,
            on_bad_row=config.on_bad_row,
            report=report,
        )
    except ValueError as error:
        flag = "--dataset_name" if name == "train" else f"--eval_dataset_name ({name})"
        raise UsageError(f"{flag}: {error}") from error
    return Split(encoded, report)
