"""The folder of a project: where its files are, one process at a time, what it was begun with."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common import run_folder
from experiments.common.binary import UsageError
from experiments.common.frozen import Item
from experiments.label.answers import Asked, read_queries
from experiments.label.config import Project
from experiments.label.writer import take_lock

PATHS = ("pool", "eval_files", "model_name_or_path", "data_dir", "chat_template")
"""Flags that say where files are: kept apart from the config, for their contents count."""


def query_folder(folder: Path) -> Path:
    """Where the query files of a project are."""
    return folder / "queries"


def answer_file(folder: Path) -> Path:
    """The answers of a project."""
    return folder / "answers.jsonl"


def known_queries(folder: Path) -> dict[str, Asked]:
    """All queries of a project, imported ones included; none before the first."""
    files = query_folder(folder)
    return read_queries(files) if any(files.glob("*.jsonl")) else {}


def proposed(queries: dict[str, Asked]) -> dict[str, Asked]:
    """Those that were proposed here."""
    return {name: query for name, query in queries.items() if isinstance(query.round, int)}


def imported_items(folder: Path) -> list[Item]:
    """The texts that imported queries are about."""
    queries = [q for q in known_queries(folder).values() if not isinstance(q.round, int)]
    return [(query.prompt, text) for query in queries for text in query.completions]


@contextmanager
def alone(project: str) -> Iterator[None]:
    """Holds a project for this process, until it ends: two would destroy what each other saves.

    Answering has a lock of its own, so that people may answer meanwhile.

    Args:
      project: its folder, which need not exist yet; the lock is beside it.

    Yields:
      Nothing.

    Raises:
      UsageError: if another process holds it.
    """
    folder = Path(os.path.realpath(project))
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if process := take_lock(lock):
            raise UsageError(
                f"--project: process {process} works on {project}: wait until it has ended"
            )
        yield
    finally:
        os.close(lock)


def with_known_paths(config: Project) -> Project:
    """A config whose paths are absolute, with the held-out files of an earlier call if it has none.

    Args:
      config: the flags of a call.

    Returns:
      The config.
    """
    file = Path(config.project) / "paths.json"
    eval_files = config.eval_files
    if not eval_files and file.exists():
        eval_files = tuple(run_folder.read_json(file)["eval_files"])
    absolute = lambda path: str(Path(path).absolute()) if path and Path(path).exists() else path
    return replace(
        config,
        pool=absolute(config.pool),
        eval_files=tuple(absolute(path) for path in eval_files),
        model_name_or_path=absolute(config.model_name_or_path),
        data_dir=absolute(config.data_dir),
        chat_template=absolute(config.chat_template),
    )


def remember_paths(config: Project, folder: Path) -> None:
    """Keeps where the files of a project are, for calls that name its folder only."""
    run_folder.write_json(folder / "paths.json", {name: getattr(config, name) for name in PATHS})


def read_project(folder: str) -> Project:
    """The flags of a project that exists.

    Raises:
      UsageError: if there is none.
    """
    files = [Path(folder) / name for name in ("config.json", "paths.json")]
    if not all(file.is_file() for file in files):
        raise UsageError(f"--project: {folder} is no labelling project, or not yet: propose first")
    found: dict[str, Any] = {}
    for file in files:
        found |= run_folder.read_json(file)
    names = {field.name for field in dataclasses.fields(Project)}
    values = {name: value for name, value in found.items() if name in names}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Project(**{**values, "project": folder})
