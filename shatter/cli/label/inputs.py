"""What a project is about: its model and its files, read, and what it must not go on with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from shatter import data, models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Frozen, load_frozen, weights_hash
from shatter.cli.common.learners import Setting, layers_of
from shatter.cli.label.config import Project, setting_of
from shatter.cli.label.folder import (
    import_command,
    recorded_date,
    recorded_facts,
    recorded_held_out,
)
from shatter.cli.label.pool import HINT, PoolFile, pool_hash, read_pool
from shatter.cli.label.queries import Asked
from shatter.types import Params


class Inputs(NamedTuple):
    """What a project is about; of all seeds the same.

    Attributes:
      model: the frozen model.
      base: its parameters that adapters are on; none for other kinds.
      pool_file: what the pool file holds.
      held_out: the held-out comparisons by name.
      facts: the checksums by which a change is noticed.
      held_out_facts: those of the held-out files, by name.
    """

    model: Frozen
    base: Params
    pool_file: PoolFile
    held_out: dict[str, list[data.Row]]
    facts: dict[str, str]
    held_out_facts: dict[str, str]


def read_inputs(config: Project) -> Inputs:
    """Reads the model and the files that a project's flags name.

    Raises:
      UsageError: if one cannot be used, or does not fit the others.
    """
    name = config.model_name_or_path
    if config.model_revision is not None and Path(name).exists():
        raise UsageError(
            f"--model_revision: expected none, because {name} is a folder, found "
            f"{config.model_revision!r}"
        )
    date = config.template_date and binary.date("template_date", config.template_date)
    model = load_frozen(
        config.model_name_or_path,
        chat_template=config.chat_template,
        revision=config.model_revision,
        date=date or None,
    )
    base, found = _base_of(setting_of(config), model), read_pool(config.pool)
    _assert_fits(config, model, found)
    files = {Path(file).name.split(".")[0]: file for file in config.eval_files}
    if len(files) < len(config.eval_files):
        raise UsageError(f"--eval_files: names must differ, found {' '.join(config.eval_files)}")
    held_out = {name: _read_held_out(file) for name, file in files.items()}
    _assert_encodable(config, model, [found.rows, *held_out.values()])
    template = model.tokenizer.chat_template or ""
    facts = {
        "weights": weights_hash(model.params),
        "pool_sha256": pool_hash(config.pool),
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tokenizer_sha256": model.tokenizer.fingerprint(),
    }
    sums = {name: pool_hash(file) for name, file in files.items()}
    return Inputs(model, base, found, held_out, facts, sums)


def assert_unchanged(config: Project, inputs: Inputs) -> None:
    """Refuses another model, encoding, pool or held-out file than the project was begun with.

    Raises:
      UsageError: naming what has changed, and both values.
    """
    found = recorded_facts(config.project)
    if found is None:
        return
    begun, facts = f"since {config.project} was begun", inputs.facts
    date = recorded_date(config.project)
    if date and date != config.template_date and inputs.model.tokenizer.asks_for_date:
        raise UsageError(
            f"--template_date: the chat template reads the date, which is {date} {begun}, found "
            f"{config.template_date}: leave the flag out"
        )
    names = {
        "weights": f"the model {config.model_name_or_path}",
        "pool_sha256": config.pool,
        "template_sha256": "the chat template",
        "tokenizer_sha256": f"the tokenizer of {config.model_name_or_path}",
    }
    for fact, name in names.items():
        if found.get(fact, facts[fact]) != facts[fact]:
            raise UsageError(
                f"{name} has changed {begun}: its sha256 was {str(found[fact])[:12]}..., is "
                f"{facts[fact][:12]}...: put the old one back; or begin another project, into "
                f"which the answers go, they are safe: {import_command(config.project)}"
            )
    for name, old in recorded_held_out(config.project).items():
        new = inputs.held_out_facts.get(name, old)
        if new != old:
            raise UsageError(
                f"--eval_files: {name} has changed {begun}, so that its measures before and after "
                f"could not be compared: its sha256 was {old[:12]}..., is {new[:12]}...: put the "
                "old one back, or give the new one another name"
            )


def _assert_fits(config: Project, model: Frozen, found: PoolFile) -> None:
    """Refuses lengths for which the model has no positions.

    Raises:
      UsageError: naming the flags and the model's length.
    """
    sampled = config.max_completion_length if found.prompts else 0
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


def _assert_encodable(config: Project, model: Frozen, files: Sequence[list[data.Row]]) -> None:
    """Refuses texts that the tokenizer cannot take.

    Raises:
      UsageError: naming the file, the line and the field.
    """
    for rows in files:
        try:
            if rows:
                data.encode_rows(rows, model.tokenizer, max_length=config.max_length)
        except ValueError as error:
            raise UsageError(str(error).split(HINT)[0]) from error


def assert_encodable_imports(config: Project, model: Frozen, queries: Sequence[Asked]) -> None:
    """Refuses imported queries of which the tokenizer or the chat template cannot take a text.

    Raises:
      UsageError: naming the file, the line, the field and the way on.
    """
    rows = [
        data.Row(q.prompt, (text,), (0,), source=q.source)
        for q in queries
        for text in q.completions
    ]
    try:
        _assert_encodable(config, model, [rows])
    except UsageError as error:
        raise UsageError(
            f"{error}\nThis text was imported. Begin another project with a --chat_template that "
            f"takes it, and: {import_command(config.project)}"
        ) from error


def _read_held_out(file: str) -> list[data.Row]:
    """Returns the comparisons of two completions of a held-out file.

    Raises:
      UsageError: if it cannot be read, or none of them was decided.
    """
    try:
        rows, _ = data.read_rows(file)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--eval_files: {str(error).split(HINT)[0]}") from error
    pairs = [row for row in rows if len(row.completions) == 2 and min(row.ranks) >= 0]
    if all(row.ranks[0] == row.ranks[1] for row in pairs):
        raise UsageError(
            f"--eval_files: {file}: expected comparisons of two completions of which one was "
            f"preferred, found none in {len(rows)} rows"
        )
    return pairs


def _base_of(setting: Setting, model: Frozen) -> Params:
    """Returns the parameters that adapters are on; none for other kinds.

    Raises:
      UsageError: if the model has no such blocks or projections.
    """
    if setting.kind != "adapters":
        return ()
    if setting.adapted_layers >= model.config.num_layers:
        raise UsageError(
            f"--adapted_layers must be below the {model.config.num_layers} blocks of the model, "
            f"found {setting.adapted_layers}"
        )
    if not setting.adapted_layers and setting.lora_target_modules != ("mlp_out",):
        raise UsageError(
            "--adapted_layers=0: expected --lora_target_modules mlp_out, found "
            f"{' '.join(setting.lora_target_modules)}"
        )
    base = layers_of(setting, model.config).upper_params(model.params)
    try:
        jax.eval_shape(lambda: models.init_lora(jax.random.key(0), base, setting.lora))
    except ValueError as error:
        raise UsageError(f"--lora_target_modules: {error}") from error
    return base
