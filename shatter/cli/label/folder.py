"""The folder of a project: where its files are, and which of them are missing or left behind."""

import shlex
import shutil
from collections import Counter
from pathlib import Path

from absl import logging

from shatter.cli.common import checksums
from shatter.cli.common.binary import UsageError
from shatter.cli.label.confirmed import accept_command, confirmed_file
from shatter.cli.label.queries import TextQuery, read_queries


def query_folder(folder: Path) -> Path:
    """Returns the folder of a project's query files."""
    return folder / "queries"


def answer_file(folder: Path) -> Path:
    """Returns the path of a project's answer file."""
    return folder / "answers.jsonl"


def candidate_file(folder: Path) -> Path:
    """Returns the path of the candidates that were sampled for a pool of prompts."""
    return folder / "candidates.jsonl"


def is_project(folder: Path) -> bool:
    """Returns whether a folder holds any file of a project; the others may be missing."""
    files = [query_folder(folder), answer_file(folder), confirmed_file(answer_file(folder))]
    return any(file.exists() for file in (*files, folder / "config.json"))


def known_queries(folder: Path) -> dict[str, TextQuery]:
    """Returns all queries of a project, including imported ones; none before the first `propose`.

    Raises:
      UsageError: if a file cannot be read, or lacks queries of its round.
    """
    files = query_folder(folder)
    queries = read_queries(files) if any(files.glob("*.jsonl")) else {}
    counts = Counter(query.source.rpartition(":")[0] for query in queries.values())
    for query in proposed(queries).values():
        file = query.source.rpartition(":")[0]
        if query.budget and counts[file] != query.budget:
            raise UsageError(
                f"{file}: expected the {query.budget} queries of its round, found {counts[file]}: "
                "put the file back, or delete it if nobody has answered them"
            )
    return queries


def proposed(queries: dict[str, TextQuery]) -> dict[str, TextQuery]:
    """Returns the queries that were proposed here, which are those of a numbered round."""
    return {name: query for name, query in queries.items() if isinstance(query.round, int)}


def imported(queries: dict[str, TextQuery]) -> list[TextQuery]:
    """Returns the queries that were imported."""
    return [query for query in queries.values() if not isinstance(query.round, int)]


def assert_answers_there(folder: Path) -> None:
    """Raises an error if the ensemble has learned from answers and all answers are missing.

    Raises:
      UsageError: naming the file and the ways to go on.
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


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of killed processes, and seals queries that they left unsealed.

    Args:
      folder: the project, which this process must hold alone.
    """
    for pattern in (
        ".*.part",
        "queries/.*.part",
        "queries/.*.tmp",
        "tables/*.tmp",
        "ensemble/*/.*.tmp",
    ):
        for file in folder.glob(pattern):
            file.unlink()
    for half_saved in folder.glob("ensemble/*.orbax-checkpoint-tmp*"):
        shutil.rmtree(half_saved)
    for queries in query_folder(folder).glob("*.jsonl"):
        seal_if_old(queries)


def seal_if_old(path: Path) -> None:
    """Gives checksums to a file or folder that has none, as older versions wrote none; says so."""
    if not checksums.is_sealed(path):
        logging.warning(
            "%s has no checksums, because an older version wrote it: it is taken as it is", path
        )
        checksums.seal(path)


def verify(path: Path, mend: str) -> None:
    """Compares a file with its checksum.

    Args:
      path: the file.
      mend: how to go on without the file, for the message.

    Raises:
      UsageError: if they differ.
    """
    seal_if_old(path)
    try:
        checksums.verify(path)
    except UsageError as error:
        raise UsageError(f"{error}: {mend}") from error


def import_command(folder: str | Path) -> str:
    """Returns the command that takes the answers of a project into another one."""
    file = shlex.quote(str(answer_file(Path(folder))))
    return f"shatter label import --project=ANOTHER --file={file}"


def mend_by_import(folder: str | Path) -> str:
    """Returns how to go on if a file is damaged that cannot be made again."""
    return f"put it back from a copy, or begin another project and: {import_command(folder)}"
