"""What a run works on: the pretrained model and the comparisons as tokens."""

import dataclasses
import datetime
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from shatter import data, models
from shatter.cli.common import binary, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from shatter.cli.finetune.config import Config
from shatter.types import Params

LORA_TARGETS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "c_attn": "qkv",
    "o_proj": "attention_out",
    "gate_proj": "gate",
    "up_proj": "up",
    "c_fc": "mlp_in",
    "down_proj": "mlp_out",
}
"""Other tools' names of projections. GPT-2's c_proj is two of ours, so it is not among them."""


class Pretrained(NamedTuple):
    """A model folder, opened.

    Attributes:
      config: of the transformer.
      params: its parameters.
      tokenizer: its tokenizer.
      lm: the language model.
      lora: of the adapters; None = every parameter is trained.
      folder: where it was opened.
      commit: of a model of the hub; None = it is a folder of the user's.
    """

    config: models.TransformerConfig
    params: Params
    tokenizer: models.Tokenizer
    lm: models.LanguageModel
    lora: models.LoraConfig | None
    folder: Path | None = None
    commit: str | None = None


class Split(NamedTuple):
    """Comparisons as tokens, and what happened to the rows on the way."""

    encoded: list[data.Encoded]
    report: data.Report


class Training(NamedTuple):
    """Comparisons to learn from; different answers to one share its forward pass.

    Attributes:
      encoded: N different comparisons.
      ranks: int32 `[N, A, K]`, the answers to each; -1 where there is none, and in empty slots.
      weight: float32 `[N, A]`, how many people gave it; 0 where there is none.
      report: what happened to the rows on the way.
    """

    encoded: list[data.Encoded]
    ranks: np.ndarray
    weight: np.ndarray
    report: data.Report


class Task(NamedTuple):
    """What a run works on.

    Attributes:
      model: the pretrained model.
      train: the comparisons to learn from.
      held_out: those to judge by, by name.
    """

    model: Pretrained
    train: Training
    held_out: dict[str, Split]


def load_model(config: Config) -> Pretrained:
    """Opens the model folder.

    Raises:
      UsageError: if it cannot be opened, or a flag asks for more than it has; the message says what
        to pass.
    """
    loaded, params, tokenizer = load_frozen(
        config.model_name_or_path,
        chat_template=config.chat_template,
        revision=config.model_revision,
        date=_template_date(config),
    )
    _check_lengths(config, loaded.max_length)
    settings: dict[str, Any] = {"remat": config.gradient_checkpointing}
    if config.bf16:
        settings["dtype"] = "bfloat16"
    loaded = dataclasses.replace(loaded, **settings)
    lora = _lora(config, loaded, params) if config.use_peft else None
    folder, commit = models.find_pretrained(
        config.model_name_or_path, revision=config.model_revision
    )
    lm = models.transformer(loaded)
    return Pretrained(loaded, params, tokenizer, lm, lora, folder, commit)


def _template_date(config: Config) -> datetime.datetime:
    """What chat templates read as the date: a flag's, that of the run to resume, or the clock's."""
    if config.template_date is not None:
        return binary.date("template_date", config.template_date)
    file, mend = Path(config.output_dir) / "config.json", "choose another --output_dir"
    recorded = run_folder.read_json(file, mend=mend) if file.is_file() else {}
    if recorded.get("template_date") is None:
        return datetime.datetime.now().replace(microsecond=0)
    try:
        return binary.date("template_date", recorded["template_date"])
    except UsageError as error:
        raise UsageError(f"{file} is damaged ({error}): {mend}") from error


def _check_lengths(config: Config, positions: int) -> None:
    """Refuses lengths that the model has no positions for."""
    most = {"max_length": positions}
    if config.objective != "reward_model":
        most["kl_length"] = positions - 1  # a prompt has at least one token
        if config.num_generations:
            most["max_completion_length"] = positions - 1
    for name, length in most.items():
        if getattr(config, name) > length:
            raise UsageError(
                f"--{name} must be at most {length}, for {config.model_name_or_path} has "
                f"{positions} positions, found {getattr(config, name)}"
            )


def _lora(
    config: Config, transformer: models.TransformerConfig, params: Params
) -> models.LoraConfig:
    """The adapters' config; what could not be saved in the end is refused before training."""
    targets = tuple(LORA_TARGETS.get(name, name) for name in config.lora_target_modules)
    try:
        lora = models.LoraConfig(config.lora_r, config.lora_alpha, targets)
        init = partial(models.init_lora, params=params, lora=lora)
        shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        with tempfile.TemporaryDirectory() as folder:
            models.save_lora(folder, transformer, blank, lora)
    except ValueError as error:
        raise UsageError(f"--lora_target_modules: {error}") from error
    return lora


def load_task(config: Config) -> Task:
    """Opens the model, reads the files of comparisons and encodes them.

    Raises:
      UsageError: naming the file, the row and the field, or the flag, that cannot be used.
    """
    check_devices(config)
    model = load_model(config)
    rows: dict[str, list[data.Row]] = {}
    reports: dict[str, data.Report] = {}
    rows["train"], reports["train"] = _read(config, config.dataset_name)
    for name, file in _named(config.eval_dataset_name).items():
        rows[name], reports[name] = _read(config, file, "--eval_dataset_name")
    return make_task(config, model, rows, reports)


def check_devices(config: Config) -> None:
    """Raises an error if --num_devices asks for more devices than there are.

    Raises:
      UsageError: naming the flag, the bound and what was found.
    """
    num_devices = jax.device_count()
    if config.num_devices is not None and config.num_devices > num_devices:
        raise UsageError(
            f"--num_devices must be at most {num_devices}, the devices that there are, found "
            f"{config.num_devices}"
        )


def make_task(
    config: Config,
    model: Pretrained,
    rows: dict[str, list[data.Row]],
    reports: dict[str, data.Report],
) -> Task:
    """Encodes comparisons that were read.

    Args:
      config: the config.
      model: the pretrained model.
      rows: those to learn from under "train", those held out under other names.
      reports: what happened to the rows of each name before.

    Returns:
      The task.

    Raises:
      UsageError: naming the row that cannot be encoded.
    """
    if config.objective != "sft":  # a tie is an order unresolved: no objective learns from it
        train = [row for row in rows["train"] if not data.without_preference([row])]
        rows = {**rows, "train": train}
    splits = {name: _encode(config, model, name, rows[name], reports[name]) for name in rows}
    return Task(model, _merge(splits.pop("train")), splits)


def _merge(split: Split) -> Training:
    """Brings together the answers to the same comparison, in the order of its first."""
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
    for n, found in enumerate(answers.values()):
        for a, (order, total) in enumerate(found.items()):
            ranks[n, a, : len(order)], weight[n, a] = order, total
    return Training(firsts, ranks, weight, split.report)


def _named(files: Sequence[str]) -> dict[str, str]:
    names = [Path(file).name.split(".")[0] for file in files]
    if len(set(names)) < len(names) or "train" in names:
        raise UsageError(f"--eval_dataset_name: names must differ and not be train, found {names}")
    return dict(zip(names, files, strict=True))


def _read(
    config: Config, file: str, flag: str = "--dataset_name"
) -> tuple[list[data.Row], data.Report]:
    """The rows that the objective can use, and what the others lack."""
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
        mend = "" if is_sft else "; pass comparisons, or --objective=sft for demonstrations"
        raise UsageError(
            f"{flag}={file}: no row says anything to {config.objective}; the first: {problems[0]}"
            f"{mend}"
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
