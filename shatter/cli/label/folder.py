"""The folder of a project: where its files are, and what it was begun with."""

import dataclasses
import datetime
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from absl import logging

from shatter.cli.common import binary, checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.label.config import RANGES, Project
from shatter.cli.label.confirmed import accept_command, confirmed_file
from shatter.cli.label.queries import Asked, read_queries
from shatter.data.layouts import shown

PATHS = (
    "pool",
    "eval_files",
    "model_name_or_path",
    "model_revision",
    "chat_template",
    "template_date",
)
"""Flags that are kept apart from the config, because only what they lead to counts."""


def query_folder(folder: Path) -> Path:
    """Returns where the query files of a project are."""
    return folder / "queries"


def answer_file(folder: Path) -> Path:
    """Returns where the answers of a project are."""
    return folder / "answers.jsonl"


def is_project(folder: Path) -> bool:
    """Returns whether a folder has anything of a project, however much of it has gone."""
    files = [query_folder(folder), answer_file(folder), confirmed_file(answer_file(folder))]
    return any(file.exists() for file in (*files, folder / "config.json"))


def known_queries(folder: Path) -> dict[str, Asked]:
    """Returns all queries of a project, imported ones included; none before the first.

    Raises:
      UsageError: if a file cannot be read, or lacks queries of its round.
    """
    files = query_folder(folder)
    queries = read_queries(files) if any(files.glob("*.jsonl")) else {}
    there = Counter(query.source.rpartition(":")[0] for query in queries.values())
    for query in proposed(queries).values():
        file = query.source.rpartition(":")[0]
        if query.budget and there[file] != query.budget:
            raise UsageError(
                f"{file}: expected the {query.budget} queries of its round, found {there[file]}: "
                "put the file back, or delete it if nobody has answered them"
            )
    return queries


def assert_answers_there(folder: Path) -> None:
    """Refuses a project that has learned from answers of which no line and no note is left.

    Raises:
      UsageError: naming the file and the ways on.
    """
    file = answer_file(folder)
    has_lines = file.is_file() and file.stat().st_size > 0
    has_learned = any((folder / "ensemble").glob("[0-9]*"))
    if has_learned and not has_lines and not confirmed_file(file).exists():
        raise UsageError(
            f"{file} has no line, but the ensemble has learned from answers, and nothing says that "
            "they were taken back: put the file back from a copy; or, to go on without them: "
            f"{accept_command(file)}"
        )


def proposed(queries: dict[str, Asked]) -> dict[str, Asked]:
    """Returns those that were proposed here."""
    return {name: query for name, query in queries.items() if isinstance(query.round, int)}


def imported(queries: dict[str, Asked]) -> list[Asked]:
    """Returns those that an import has added."""
    return [query for query in queries.values() if not isinstance(query.round, int)]


def seal_if_old(path: Path) -> None:
    """Gives checksums to a file or folder of an older version, which wrote none, and says so."""
    if not checksums.is_sealed(path):
        logging.warning(
            "%s has no checksums, as older versions wrote none: it is taken as it is", path
        )
        checksums.seal(path)


def tidy(folder: Path) -> None:
    """Removes what killed processes left in a project, and seals queries that they did not seal.

    Args:
      folder: the project, which must be this process's alone.
    """
    for name in (
        ".*.part",
        "queries/.*.part",
        "queries/.*.tmp",
        "tables/*.tmp",
        "ensemble/*/.*.tmp",
    ):
        for left in folder.glob(name):
            left.unlink()
    for half_saved in folder.glob("ensemble/*.orbax-checkpoint-tmp*"):
        shutil.rmtree(half_saved)
    for queries in query_folder(folder).glob("*.jsonl"):
        seal_if_old(queries)


def check(path: Path, mend: str) -> None:
    """Compares a file with its checksum.

    Args:
      path: the file.
      mend: how to go on without it, for the message.

    Raises:
      UsageError: if they differ.
    """
    seal_if_old(path)
    try:
        checksums.verify(path)
    except UsageError as error:
        raise UsageError(f"{error}: {mend}") from error


def import_command(folder: str | Path) -> str:
    """Returns the command that takes the answers of a project into another."""
    file = shlex.quote(str(answer_file(Path(folder))))
    return f"shatter label import --project=ANOTHER --file={file}"


def with_known_paths(config: Project) -> Project:
    """Returns a config with absolute paths, and with what an earlier call has recorded.

    Args:
      config: the flags of a call.

    Returns:
      The config. Held-out files and the date of the chat template are those of an earlier call if
      this one gives none; without an earlier call the date is now.

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


def remember_paths(config: Project, folder: Path, held_out: dict[str, str]) -> None:
    """Keeps where the files of a project are, for calls that name its folder only.

    Args:
      config: the flags.
      folder: the project.
      held_out: sha256 of the held-out files, by name.
    """
    held_out = recorded_held_out(folder) | held_out
    paths = {name: getattr(config, name) for name in PATHS}
    file = folder / "paths.json"
    file.with_name("paths.json.sha256").unlink(missing_ok=True)  # of the file that goes
    run_folder.write_json(file, paths | {"eval_sha256": held_out})
    checksums.seal(file)


def recorded_facts(project: str | Path) -> dict[str, Any] | None:
    """Returns what a project was begun with; None = it has not begun."""
    file = Path(project) / "config.json"
    return run_folder.read_json(file, mend=mend_by_import(project)) if file.exists() else None


def recorded_date(project: str | Path) -> str | None:
    """Returns the date of a project's chat template; None = it has none yet.

    Raises:
      UsageError: if the record is damaged.
    """
    config, paths = (Path(project) / name for name in ("config.json", "paths.json"))
    for file, mend in ((config, mend_by_import(project)), (paths, _MEND_PATHS)):
        # The config of an older version has none.
        date = _flags_in(file, mend).get("template_date") if file.exists() else None
        if date is not None:
            return str(date)
    return None


def recorded_held_out(folder: str | Path) -> dict[str, str]:
    """Returns the sha256 of held-out files of earlier calls, by name; older versions kept none."""
    file = Path(folder) / "paths.json"
    if not file.exists():
        return {}
    found = run_folder.read_json(file, mend=_MEND_PATHS).get("eval_sha256", {})
    if not isinstance(found, dict):
        raise UsageError(f"{file} is damaged (eval_sha256: expected an object): {_MEND_PATHS}")
    return found


def read_project(folder: str) -> Project:
    """Returns the flags of a project that exists.

    Raises:
      UsageError: if there is none, or the record of its flags is damaged.
    """
    config, paths = (Path(folder) / name for name in ("config.json", "paths.json"))
    assert_config_there(folder)
    mend = mend_by_import(folder)
    if not config.is_file():
        raise UsageError(f"--project: {folder} is no labelling project, or not yet: propose first")
    if not paths.is_file():
        raise UsageError(f"{paths} is missing: propose with the flags that say where the files are")
    values = _flags_in(paths, _MEND_PATHS) | _flags_in(config, mend)
    names = {field.name for field in dataclasses.fields(Project)} - {*PATHS, "project"}
    if missing := sorted(names - values.keys()):
        raise UsageError(f"{config} is damaged (it lacks {', '.join(missing)}): {mend}")
    project = Project(**{**values, "project": folder})
    try:
        binary.check_ranges(project, RANGES)
    except UsageError as error:
        raise UsageError(f"{config} is damaged ({error}): {mend}") from error
    return project


def assert_config_there(folder: str | Path) -> None:
    """Refuses a project whose record of flags has gone.

    Raises:
      UsageError: naming the file and the ways on.
    """
    file = Path(folder) / "config.json"
    if is_project(Path(folder)) and not file.exists():
        raise UsageError(f"{file} is missing: {mend_by_import(folder)}")


def check_records(folder: str | Path) -> None:
    """Refuses a project whose records have gone or changed, by a flipped digit for example.

    Raises:
      UsageError: naming the file and the ways on.
    """
    assert_config_there(folder)
    file = Path(folder) / "config.json"
    if file.exists():
        mend = f"if you have changed it yourself, delete {file}.sha256; or {mend_by_import(folder)}"
        check(file, mend)
    if (paths := Path(folder) / "paths.json").exists():
        check(paths, _MEND_PATHS)


def mend_by_import(folder: str | Path) -> str:
    """Returns what to do where a file that nothing can make anew is damaged."""
    return f"put it back from a copy, or begin another project and: {import_command(folder)}"


_MEND_PATHS = "delete it, and propose with the flags that say where the files are"


def _flags_in(file: Path, mend: str) -> dict[str, Any]:
    """Reads those flags of a project that a file holds, each of its type."""
    values: dict[str, Any] = {}
    found = run_folder.read_json(file, mend=mend)
    for name, hint in get_type_hints(Project).items():
        if name not in found:
            continue
        value = found[name]
        if not _fits(value, hint):
            raise UsageError(f"{file} is damaged ({name}: found {shown(value)}): {mend}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether JSON holds a value of a type of `Project`."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    kinds = get_args(hint) or (hint,)
    kinds += (int,) if float in kinds else ()
    return isinstance(value, kinds) and not isinstance(value, bool)
