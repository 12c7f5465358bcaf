"""What a project must not begin, or go on, with."""

from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.common import run_folder
from experiments.common.binary import UsageError
from experiments.common.frozen import Frozen
from experiments.common.learners import Setting, layers_of
from experiments.label.config import Project
from experiments.label.pool import PoolFile
from shatter import data, models
from shatter.types import Params

_HINT = "\non_bad_row"  # what the reader advises, which is no flag here


def assert_unchanged(config: Project, facts: dict[str, str]) -> None:
    """Refuses another model or pool than the queries came from.

    Raises:
      UsageError: naming what has changed, and both checksums.
    """
    file = Path(config.project) / "config.json"
    if not file.exists():
        return
    found = run_folder.read_json(file)
    names = {
        "weights": f"the model {config.model_name_or_path}",
        "pool_sha256": config.pool,
        "template_sha256": "the chat template",
    }
    for fact, name in names.items():
        if found.get(fact, facts[fact]) != facts[fact]:
            raise UsageError(
                f"{name} has changed since {config.project} was begun: its sha256 was "
                f"{found[fact][:12]}..., is {facts[fact][:12]}...: put the old one back, or choose "
                "another --project and import the answers there; they are safe"
            )


def assert_fits(config: Project, model: Frozen, found: PoolFile) -> None:
    """Refuses lengths for which the model has no positions.

    Raises:
      UsageError: naming the flags and the model's length.
    """
    sampled = config.max_completion_length if found.prompts else 0
    if config.max_length + sampled > model.config.max_length:
        more = f" and --max_completion_length={sampled}" if sampled else ""
        raise UsageError(
            f"--max_length={config.max_length}{more}: expected at most the "
            f"{model.config.max_length} tokens of the model together"
        )


def assert_encodable(config: Project, model: Frozen, files: Sequence[list[data.Row]]) -> None:
    """Refuses texts that the tokenizer cannot take.

    Raises:
      UsageError: naming the file, the line and the field.
    """
    for rows in files:
        try:
            if rows:
                data.encode_rows(rows, model.tokenizer, max_length=config.max_length)
        except ValueError as error:
            raise UsageError(str(error).split(_HINT)[0]) from error


def read_held_out(file: str) -> list[data.Row]:
    """The comparisons of two completions of a held-out file.

    Raises:
      UsageError: if it cannot be read, or none of them was decided.
    """
    try:
        rows, _ = data.read_rows(file)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--eval_files: {str(error).split(_HINT)[0]}") from error
    pairs = [row for row in rows if len(row.completions) == 2 and min(row.ranks) >= 0]
    if all(row.ranks[0] == row.ranks[1] for row in pairs):
        raise UsageError(
            f"--eval_files: {file}: expected comparisons of two completions of which one was "
            f"preferred, found none in {len(rows)} rows"
        )
    return pairs


def base_of(setting: Setting, model: Frozen) -> Params:
    """The parameters that adapters are on; none for other kinds.

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
    base = layers_of(setting, model.config).upper_params(model.params)
    try:
        jax.eval_shape(lambda: models.init_lora(jax.random.key(0), base, setting.lora))
    except ValueError as error:
        raise UsageError(f"--lora_target_modules: {error}") from error
    return base
