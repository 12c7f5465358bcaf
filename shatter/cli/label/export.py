"""Writes for other tools: the answers as preferences, a member or the mean as a model."""

import os
from pathlib import Path

import jax

from shatter import data, ensembles, models
from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import Answer, current_answers, is_of_many, mismatch
from shatter.cli.label.config import ExportConfig, ProjectConfig, setting_of
from shatter.cli.label.folder import answer_file, known_queries
from shatter.cli.label.project import Project
from shatter.cli.label.queries import TextQuery, is_audit, usage_error
from shatter.cli.label.records import read_project
from shatter.data.files import write_json_lines
from shatter.data.rows import record_of


def check_export(config: ExportConfig) -> None:
    """Raises an error if something cannot be exported, before the answers or a model are read.

    Raises:
      UsageError: if nothing is to be written, a file exists already, or the project has no such
        model.
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
      folder: the folder of the project.
      path: the file, ending in .jsonl or .jsonl.gz.

    Returns:
      Lines that say what was written, and what was left out.

    Raises:
      UsageError: if the answers cannot be read, or the file cannot be written.
    """
    queries, answers = known_queries(folder), current_answers(answer_file(folder))
    problems = {answer.event_id: mismatch(answer, queries) for answer in answers}
    good = [answer for answer in answers if problems[answer.event_id] is None]
    rows = [_record(answer, queries[answer.query_id]) for answer in good]
    try:
        write_json_lines(path, rows)
    except ValueError as error:
        raise UsageError(f"--answers: {error}") from error
    left_out = [
        f"left out: {usage_error(answer.source, bad)}"
        for answer in answers
        if (bad := problems[answer.event_id]) is not None
    ]
    return [f"{path}: {len(good):,} answers", *left_out]


def _record(answer: Answer, query: TextQuery) -> dict[str, object]:
    """Returns a row of preferences, with the annotator and the time by which `import` knows it.

    Answers to audits are marked, so that `import` keeps them apart.
    """
    row = data.Row(
        query.prompt,
        query.completions,
        answer.ranks,
        answer.weight,
        answer.annotator,
        last_turn=query.last_turn,
    )
    record = record_of(row) | ({"audit": True} if is_audit(query) else {})
    if is_of_many(answer):
        return record | {"of_many": True}
    return record | ({"time": answer.time} if answer.time else {})


def export_model(project: Project, config: ExportConfig) -> str:
    """Writes a member, or the mean of all members, as a model.

    Args:
      project: the project.
      config: the flags, checked by `check_export`.

    Returns:
      A line that says what was written.

    Raises:
      UsageError: if it cannot be written.
    """
    setting = setting_of(project.config)
    own, lora = project.state.members.states.params, setting.lora
    if config.member < 0:
        adapters, lora = ensembles.mean_adapters(own, lora)
    else:
        adapters = jax.tree.map(lambda leaf: leaf[config.member], own)
    transformer = project.inputs.model.config
    # Adapters on the last mlp_out alone are stored in the last block.
    first_block = min(setting.cut(transformer.num_layers), transformer.num_layers - 1)
    whole = ensembles.whole_adapters(adapters, first_block)
    params = models.merge_lora(project.inputs.model.params, whole, lora)
    origin, _ = models.find_pretrained(
        project.config.model_name_or_path, revision=project.config.model_revision
    )
    tokenizer = project.inputs.model.tokenizer
    models.save_pretrained(config.model, transformer, params, tokenizer, like=origin)
    name = "the mean of all members" if config.member < 0 else f"member {config.member}"
    history = project.state.history
    return f"{config.model}: {name}, after {history[-1]['answers'] if history else 0} answers"


def _assert_absent(flag: str, path: str) -> None:
    if os.path.lexists(path):
        raise UsageError(f"--{flag}: {path} exists: choose another name")


def _check_model(project: ProjectConfig, config: ExportConfig) -> None:
    """Raises an error if a project has no such model.

    Raises:
      UsageError: if its members are not language models, or there is no such member.
    """
    if project.ensemble != "adapters":
        raise UsageError(
            f"--model: members of {project.ensemble} are scores on a frozen model, not language "
            "models: begin a project with --ensemble=adapters; or use --answers and "
            "`shatter finetune`"
        )
    if config.member >= project.num_members:
        raise UsageError(f"--member must be in [-1, {project.num_members}), found {config.member}")
