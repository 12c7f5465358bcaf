"""What was learned, for other tools: answers as preferences, a member or the mean as a model."""

import os
from pathlib import Path

import jax

from shatter import data, ensembles, models
from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import Answer, current_answers, is_of_many, stranger
from shatter.cli.label.config import Export, Project, setting_of
from shatter.cli.label.folder import answer_file, known_queries, read_project
from shatter.cli.label.project import Bench
from shatter.cli.label.queries import Asked, usage_error
from shatter.data.files import write_json_lines
from shatter.data.rows import record_of


def check_export(config: Export) -> None:
    """Refuses what cannot be written, before anything is read.

    Raises:
      UsageError: if nothing is asked for, it exists already, or the project has no such model.
    """
    if not config.answers and not config.model:
        raise UsageError("expected --answers=FILE.jsonl or --model=FOLDER, found neither")
    if config.member != -1 and not config.model:
        raise UsageError(f"--member={config.member}: expected --model=FOLDER beside it, found none")
    if config.model:
        _assert_absent("model", config.model)
        _check_model(read_project(config.project), config)
    if config.answers:
        _assert_absent("answers", config.answers)


def export_answers(folder: Path, path: str) -> list[str]:
    """Writes the answers that stand as preferences; needs neither the model nor the pool.

    Args:
      folder: of the project.
      path: the file, ending in .jsonl or .jsonl.gz.

    Returns:
      What was written, and what was left out, a line each.

    Raises:
      UsageError: if the answers cannot be read, or the file cannot be written.
    """
    queries, answers = known_queries(folder), current_answers(answer_file(folder))
    strange = {answer.event_id: stranger(answer, queries) for answer in answers}
    kept = [answer for answer in answers if strange[answer.event_id] is None]
    rows = [_record(answer, queries[answer.query_id]) for answer in kept]
    try:
        write_json_lines(path, rows)
    except ValueError as error:
        raise UsageError(f"--answers: {error}") from error
    left_out = [
        f"left out: {usage_error(answer.source, bad)}"
        for answer in answers
        if (bad := strange[answer.event_id]) is not None
    ]
    return [f"{path}: {len(kept):,} answers", *left_out]


def _record(answer: Answer, query: Asked) -> dict[str, object]:
    """Returns a row of preferences with its annotator and time, by which `import` knows it."""
    row = data.Row(query.prompt, query.completions, answer.ranks, answer.weight, answer.annotator)
    if is_of_many(answer):
        return record_of(row) | {"of_many": True}
    return record_of(row) | ({"time": answer.time} if answer.time else {})


def export_model(bench: Bench, config: Export) -> str:
    """Writes a member, or the mean of all, as a model.

    Args:
      bench: the project.
      config: the flags, checked.

    Returns:
      What was written.

    Raises:
      UsageError: if it cannot be written.
    """
    setting = setting_of(bench.config)
    own, lora = bench.ensemble.members.states.params, setting.lora
    if config.member < 0:
        adapters, lora = ensembles.mean_adapters(own, lora)
    else:
        adapters = jax.tree.map(lambda leaf: leaf[config.member], own)
    transformer = bench.inputs.model.config
    layer = transformer.num_layers - max(setting.adapted_layers, 1)
    whole = ensembles.whole_adapters(adapters, layer)
    params = models.merge_lora(bench.inputs.model.params, whole, lora)
    origin, _ = models.find_pretrained(
        bench.config.model_name_or_path, revision=bench.config.model_revision
    )
    tokenizer = bench.inputs.model.tokenizer
    models.save_pretrained(config.model, transformer, params, tokenizer, like=origin)
    name = "the mean of all members" if config.member < 0 else f"member {config.member}"
    num_answers = bench.ensemble.history[-1]["answers"] if bench.ensemble.history else 0
    return f"{config.model}: {name}, after {num_answers} answers"


def _assert_absent(flag: str, path: str) -> None:
    if os.path.lexists(path):
        raise UsageError(f"--{flag}: {path} exists: choose another name")


def _check_model(project: Project, config: Export) -> None:
    """Refuses a model that a project does not have.

    Raises:
      UsageError: if its members are no language models, or there is no such member.
    """
    if project.ensemble != "adapters":
        raise UsageError(
            f"--model: members of {project.ensemble} are scores on a frozen model, no language "
            "models: begin a project with --ensemble=adapters; or use --answers and "
            "`shatter finetune`"
        )
    if config.member >= project.num_members:
        raise UsageError(f"--member must be in [-1, {project.num_members}), found {config.member}")
