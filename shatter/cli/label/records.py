"""The records of a project's flags: config.json, which never changes, and paths.json."""

import dataclasses
import datetime
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shatter.cli.common import binary, checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.learners import LAST_MLP_OUT
from shatter.cli.label.config import RANGES, ProjectConfig
from shatter.cli.label.folder import is_project, mend_by_import, verify
from shatter.data.layouts import shown

PATHS = (
    "pool",
    "eval_files",
    "model_name_or_path",
    "model_revision",
    "chat_template",
    "template_date",
)
"""Flags that are kept apart from the config, because files may move if their content stays."""

_MEND_PATHS = "delete it, and propose with the flags that say where the files are"


def with_known_paths(config: ProjectConfig) -> ProjectConfig:
    """Returns a config with absolute paths, completed by the record of an earlier call.

    Args:
      config: the flags of a call.

    Returns:
      The config. If the call gives no held-out files or no date of the chat template, they are
      those of an earlier call; without an earlier call the date is now.

    Raises:
      UsageError: if the record of an earlier call is damaged.
    """
    file = Path(config.project) / "paths.json"
    known = _flags_in(file, _MEND_PATHS) if file.exists() else {}
    eval_files = config.eval_files or known.get("eval_files", ())
    date = config.template_date or recorded_date(config.project)
    absolute = lambda path: str(Path(path).absolute()) if path and Path(path).exists() else path
    return replace(
        config,
        pool=absolute(config.pool),
        eval_files=tuple(absolute(path) for path in eval_files),
        model_name_or_path=absolute(config.model_name_or_path),
        chat_template=absolute(config.chat_template),
        template_date=date or datetime.datetime.now().isoformat(timespec="seconds"),
    )


def remember_paths(config: ProjectConfig, folder: Path, held_out: dict[str, str]) -> None:
    """Records where the files of a project are, for calls that name its folder only.

    Args:
      config: the flags.
      folder: the project.
      held_out: the sha256 of each held-out file, by name.
    """
    held_out = recorded_held_out(folder) | held_out
    paths = {name: getattr(config, name) for name in PATHS}
    file = folder / "paths.json"
    file.with_name("paths.json.sha256").unlink(missing_ok=True)  # it is of the old file
    run_folder.write_json(file, paths | {"eval_sha256": held_out})
    checksums.seal(file)


def recorded_facts(project: str | Path) -> dict[str, Any] | None:
    """Returns the content of a project's config.json; None if the project has not begun."""
    file = Path(project) / "config.json"
    return run_folder.read_json(file, mend=mend_by_import(project)) if file.exists() else None


def recorded_date(project: str | Path) -> str | None:
    """Returns the date of a project's chat template; None if it has none yet.

    Raises:
      UsageError: if the record is damaged.
    """
    config, paths = (Path(project) / name for name in ("config.json", "paths.json"))
    for file, mend in ((config, mend_by_import(project)), (paths, _MEND_PATHS)):
        # The config of an older version has no date.
        date = _flags_in(file, mend).get("template_date") if file.exists() else None
        if date is not None:
            return str(date)
    return None


def recorded_held_out(folder: str | Path) -> dict[str, str]:
    """Returns the recorded sha256 of each held-out file, by name; older versions recorded none."""
    file = Path(folder) / "paths.json"
    if not file.exists():
        return {}
    sums = run_folder.read_json(file, mend=_MEND_PATHS).get("eval_sha256", {})
    if not isinstance(sums, dict):
        raise UsageError(f"{file} is damaged (eval_sha256: expected an object): {_MEND_PATHS}")
    return sums


def as_recorded(config: ProjectConfig) -> ProjectConfig:
    """Returns a config whose values are written as in the project's config.json.

    Older versions wrote 0 for --adapted_layers=last_mlp_out.
    """
    recorded = (recorded_facts(config.project) or {}).get("adapted_layers")
    is_old = recorded == 0 and config.adapted_layers == LAST_MLP_OUT
    return replace(config, adapted_layers=0) if is_old else config


def read_project(folder: str) -> ProjectConfig:
    """Returns the flags of a project.

    Args:
      folder: the project.

    Returns:
      The flags.

    Raises:
      UsageError: if there is no project, or the record of its flags is damaged.
    """
    config, paths = (Path(folder) / name for name in ("config.json", "paths.json"))
    assert_config_there(folder)
    mend = mend_by_import(folder)
    if not config.is_file():
        raise UsageError(f"--project: {folder} is no labelling project, or not yet: propose first")
    if not paths.is_file():
        raise UsageError(f"{paths} is missing: propose with the flags that say where the files are")
    values = _flags_in(paths, _MEND_PATHS) | _flags_in(config, mend)
    names = {field.name for field in dataclasses.fields(ProjectConfig)} - {*PATHS, "project"}
    if missing := sorted(names - values.keys()):
        raise UsageError(f"{config} is damaged (it lacks {', '.join(missing)}): {mend}")
    project = ProjectConfig(**{**values, "project": folder})
    try:
        binary.check_ranges(project, RANGES)
    except UsageError as error:
        raise UsageError(f"{config} is damaged ({error}): {mend}") from error
    return project


def assert_config_there(folder: str | Path) -> None:
    """Raises an error if the config.json of a project is missing.

    Raises:
      UsageError: naming the file and the ways to go on.
    """
    file = Path(folder) / "config.json"
    if is_project(Path(folder)) and not file.exists():
        raise UsageError(f"{file} is missing: {mend_by_import(folder)}")


def check_records(folder: str | Path) -> None:
    """Raises an error if a record of a project is missing or has changed, by a flipped digit say.

    Raises:
      UsageError: naming the file and the ways to go on.
    """
    assert_config_there(folder)
    file = Path(folder) / "config.json"
    if file.exists():
        mend = f"if you have changed it yourself, delete {file}.sha256; or {mend_by_import(folder)}"
        verify(file, mend)
    if (paths := Path(folder) / "paths.json").exists():
        verify(paths, _MEND_PATHS)


def _flags_in(file: Path, mend: str) -> dict[str, Any]:
    """Returns the flags of a project that a file holds, after checking their types."""
    flags: dict[str, Any] = {}
    record = _without_data_dir(run_folder.read_json(file, mend=mend), file, mend)
    for name, hint in get_type_hints(ProjectConfig).items():
        if name not in record:
            continue
        value = record[name]
        if not _fits(value, hint):
            raise UsageError(f"{file} is damaged ({name}: found {shown(value)}): {mend}")
        flags[name] = tuple(value) if isinstance(value, list) else value
    if flags.get("adapted_layers") == 0:  # as older versions wrote it
        flags["adapted_layers"] = LAST_MLP_OUT
    return flags


def _without_data_dir(record: dict[str, Any], file: Path, mend: str) -> dict[str, Any]:
    """Returns a record in which a model that older versions looked up in --data_dir is a path."""
    data_dir, name = record.get("data_dir"), record.get("model_name_or_path")
    if not isinstance(data_dir, str | None):
        raise UsageError(f"{file} is damaged (data_dir: found {shown(data_dir)}): {mend}")
    if data_dir and isinstance(name, str) and not Path(name).exists():
        folder = Path(data_dir) / name
        return {**record, "model_name_or_path": str(folder)} if folder.is_dir() else record
    return record


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a JSON value is of the type of a flag."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and not isinstance(value, bool)
