"""The model and the files of a project: reads them and raises an error if they have changed."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from shatter import data, models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Frozen, load_frozen, weights_hash
from shatter.cli.common.learners import LAST_MLP_OUT, Setting, layers_of
from shatter.cli.label.config import ProjectConfig, setting_of
from shatter.cli.label.folder import import_command
from shatter.cli.label.pool import read_pool
from shatter.cli.label.pool_file import PoolFile, pool_hash, without_advice
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.records import recorded_date, recorded_facts, recorded_held_out
from shatter.types import Params

OF_POOL = "pool"
"""What the names of measures of the pool begin with, as those of held-out files with theirs."""


class Inputs(NamedTuple):
    """The model and the files of a project.

    Attributes:
      model: the frozen model.
      base: with adapters, the parameters of the model that they change; else empty.
      pool_file: the content of the pool file.
      held_out: the held-out comparisons by name.
      facts: the checksums that tell whether something has changed.
      held_out_facts: the checksums of the held-out files, by name.
    """

    model: Frozen
    base: Params
    pool_file: PoolFile
    held_out: dict[str, list[data.Row]]
    facts: dict[str, str]
    held_out_facts: dict[str, str]


def read_inputs(config: ProjectConfig) -> Inputs:
    """Reads the model and the files that a project's flags name.

    Raises:
      UsageError: if one cannot be used, or does not fit the others.
    """
    model = _load_model(config)
    base, pool_file = _base_of(setting_of(config), model), read_pool(config.pool)
    _assert_fits(config, model, pool_file)
    files = {Path(file).name.split(".")[0]: file for file in config.eval_files}
    if len(files) < len(config.eval_files):
        raise UsageError(f"--eval_files: names must differ, found {' '.join(config.eval_files)}")
    if OF_POOL in files:
        raise UsageError(_named_as_pool(config, files[OF_POOL]))
    held_out = {name: _read_held_out(file) for name, file in files.items()}
    _assert_encodable(config, model, [pool_file.rows, *held_out.values()])
    template = model.tokenizer.chat_template or ""
    facts = {
        "weights": weights_hash(model.params),
        "pool_sha256": pool_hash(config.pool),
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tokenizer_sha256": model.tokenizer.fingerprint(),
    }
    sums = {name: pool_hash(file) for name, file in files.items()}
    return Inputs(model, base, pool_file, held_out, facts, sums)


def _named_as_pool(config: ProjectConfig, file: str) -> str:
    """Returns the message about a held-out file whose measures could not be told from the pool's.

    Older versions took it, so that a project may have recorded its path.
    """
    message = (
        f"--eval_files: measures named {OF_POOL} are those of the pool's own forecast, found "
        f"{file}: rename the file"
    )
    if recorded_facts(config.project) is None:
        return message
    renamed = [
        str(Path(path).with_name(f"held_out_{Path(path).name}")) if path == file else path
        for path in config.eval_files
    ]
    return (
        f"{message}, to held_out_{Path(file).name} say, and run `shatter label propose` with the "
        f"other flags as before and --eval_files {shlex.join(renamed)}"
    )


def _load_model(config: ProjectConfig) -> Frozen:
    name = config.model_name_or_path
    if config.model_revision is not None and Path(name).exists():
        raise UsageError(
            f"--model_revision: expected none, because {name} is a folder, found "
            f"{config.model_revision!r}"
        )
    date = config.template_date and binary.date("template_date", config.template_date)
    try:
        return load_frozen(
            name,
            chat_template=config.chat_template,
            revision=config.model_revision,
            date=date or None,
        )
    except UsageError as error:
        if recorded_facts(config.project) is None:
            raise
        raise UsageError(
            f"{error}. If the model has moved, give its new folder to `shatter label propose` as "
            "--model_name_or_path, with the other flags as before"
        ) from error


def assert_unchanged(config: ProjectConfig, inputs: Inputs) -> None:
    """Raises an error if the model, the encoding or a file has changed since the project began.

    Raises:
      UsageError: naming what has changed, with the values before and now.
    """
    recorded = recorded_facts(config.project)
    if recorded is None:
        return
    since, facts = f"since {config.project} was begun", inputs.facts
    date = recorded_date(config.project)
    if date and date != config.template_date and inputs.model.tokenizer.asks_for_date:
        raise UsageError(
            f"--template_date: the chat template reads the date, which is {date} {since}, found "
            f"{config.template_date}: leave the flag out"
        )
    names = {
        "weights": f"the model {config.model_name_or_path}",
        "pool_sha256": config.pool,
        "template_sha256": "the chat template",
        "tokenizer_sha256": f"the tokenizer of {config.model_name_or_path}",
    }
    for fact, name in names.items():
        if recorded.get(fact, facts[fact]) != facts[fact]:
            raise UsageError(
                f"{name} has changed {since}: its sha256 was {str(recorded[fact])[:12]}..., is "
                f"{facts[fact][:12]}...: put the old one back; or begin another project and take "
                f"the answers into it, they are safe: {import_command(config.project)}"
            )
    for name, old in recorded_held_out(config.project).items():
        new = inputs.held_out_facts.get(name, old)
        if new != old:
            raise UsageError(
                f"--eval_files: {name} has changed {since}, so that its measures before and after "
                f"could not be compared: its sha256 was {old[:12]}..., is {new[:12]}...: put the "
                "old one back, or give the new one another name"
            )


def _assert_fits(config: ProjectConfig, model: Frozen, pool_file: PoolFile) -> None:
    """Raises an error if the model has too few positions for the lengths in the flags.

    Raises:
      UsageError: naming the flags and the model's length.
    """
    sampled = config.max_completion_length if pool_file.prompts else 0
    if sampled >= config.max_length:
        raise UsageError(
            f"--max_completion_length={sampled}: expected less than --max_length="
            f"{config.max_length}, which holds the prompt too"
        )
    if config.max_length + sampled > model.config.max_length:
        more = f" and --max_completion_length={sampled}" if sampled else ""
        raise UsageError(
            f"--max_length={config.max_length}{more}: expected at most the "
            f"{model.config.max_length} tokens of the model together"
        )


def _assert_encodable(
    config: ProjectConfig, model: Frozen, files: Sequence[list[data.Row]]
) -> None:
    """Raises an error if the tokenizer cannot encode a text.

    Raises:
      UsageError: naming the file, the line and the field.
    """
    for rows in files:
        try:
            if rows:
                data.encode_rows(rows, model.tokenizer, max_length=config.max_length)
        except ValueError as error:
            raise UsageError(without_advice(error)) from error


def assert_encodable_imports(
    config: ProjectConfig, model: Frozen, queries: Sequence[TextQuery]
) -> None:
    """Raises an error if the tokenizer or the chat template cannot take an imported text.

    Raises:
      UsageError: naming the file, the line, the field and the way to go on.
    """
    rows = [
        data.Row(query.prompt, (text,), (0,), source=query.source)
        for query in queries
        for text in query.completions
    ]
    try:
        _assert_encodable(config, model, [rows])
    except UsageError as error:
        raise UsageError(
            f"{error}\nThis text was imported. Begin another project with a --chat_template that "
            f"takes it, and: {import_command(config.project)}"
        ) from error


def _read_held_out(file: str) -> list[data.Row]:
    """Returns the comparisons of two completions in a held-out file.

    Raises:
      UsageError: if it cannot be read, or none of them was decided.
    """
    try:
        rows, _ = data.read_rows(file)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--eval_files: {without_advice(error)}") from error
    pairs = [row for row in rows if len(row.completions) == 2 and min(row.ranks) >= 0]
    if all(row.ranks[0] == row.ranks[1] for row in pairs):
        raise UsageError(
            f"--eval_files: {file}: expected comparisons of two completions of which one was "
            f"preferred, found none in {len(rows)} rows"
        )
    return pairs


def _base_of(setting: Setting, model: Frozen) -> Params:
    """Returns the parameters that adapters change; an empty tuple for other kinds.

    Raises:
      UsageError: if the model does not have these blocks or projections.
    """
    if setting.kind != "adapters":
        return ()
    if setting.adapted_layers == LAST_MLP_OUT:
        if setting.lora_target_modules != ("mlp_out",):
            raise UsageError(
                f"--adapted_layers={LAST_MLP_OUT}: expected --lora_target_modules mlp_out, found "
                f"{' '.join(setting.lora_target_modules)}"
            )
    elif setting.adapted_layers >= model.config.num_layers:
        raise UsageError(
            f"--adapted_layers must be below the {model.config.num_layers} blocks of the model, "
            f"found {setting.adapted_layers}"
        )
    base = layers_of(setting, model.config).upper_params(model.params)
    try:
        jax.eval_shape(lambda: models.init_lora(jax.random.key(0), base, setting.lora))
    except ValueError as error:
        raise UsageError(f"--lora_target_modules: {error}") from error
    return base
