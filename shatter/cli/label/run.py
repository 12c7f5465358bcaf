"""`shatter label`: propose queries, answer them, learn from the answers, exchange them."""

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console
from shatter.cli.label import asking, tables, terminal
from shatter.cli.label.config import (
    RANGES,
    Accept,
    Answer,
    Export,
    Import,
    Learn,
    Propose,
    check,
)
from shatter.cli.label.confirmed import is_unconfirmed
from shatter.cli.label.display import say
from shatter.cli.label.export import check_export, export_answers, export_model
from shatter.cli.label.folder import (
    answer_file,
    assert_answers_there,
    is_project,
    known_queries,
    proposed,
    query_folder,
    read_project,
    tidy,
)
from shatter.cli.label.imports import import_answers
from shatter.cli.label.learn import learn
from shatter.cli.label.project import open_project
from shatter.cli.label.propose import propose
from shatter.cli.label.writer import open_writer

FLAGS = (
    Annotated[Propose, tyro.conf.subcommand("propose")]
    | Annotated[Answer, tyro.conf.subcommand("answer")]
    | Annotated[Learn, tyro.conf.subcommand("learn")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Accept, tyro.conf.subcommand("accept")]
)


def experiment(config: Any) -> None:
    """Runs a subcommand."""
    binary.check_texts(config)
    binary.check_ranges(config, RANGES)
    console = open_console()
    folder = Path(config.project)
    if not config.project.strip():
        raise UsageError("--project: expected a folder, found none")
    if isinstance(config, Propose):
        check(config)
    elif not is_project(folder):
        raise UsageError(f"--project: {folder} is no labelling project, or not yet: propose first")
    elif not isinstance(config, Accept):
        assert_answers_there(folder)
        if is_unconfirmed(answer_file(folder)):
            say(
                console,
                f"{answer_file(folder)} has no note of what was confirmed, as older versions wrote "
                "none: whether lines have gone cannot be told",
            )
    if isinstance(config, Answer):
        _answer(config, console)
        return
    if isinstance(config, Export):
        check_export(config)
        if config.answers:  # which needs no lock, and so no folder that can be written
            for line in export_answers(folder, config.answers):
                say(console, line)
        if not config.model:
            return
    with alone(config.project, "--project"):
        match config:
            case Propose():
                _propose(config, console)
            case Learn():
                _learn(config, console)
            case Import():
                _import(config, console)
            case Export():
                _export_model(config, console)
            case Accept():
                _accept(config, console)


def _propose(config: Propose, console: Console) -> None:
    bench = open_project(config)
    batch = propose(bench, config)
    console.print(tables.queries(batch))
    more = f"{len(batch) - 10} more; " if len(batch) > 10 else ""
    answer = f"shatter label answer --project={shlex.quote(config.project)}"
    say(console, f"{more}{len(batch)} queries in {query_folder(bench.folder)}. Next: {answer}")


def _answer(config: Answer, console: Console) -> None:
    folder = Path(config.project)
    queries = proposed(known_queries(folder))
    if not queries:
        raise UsageError(f"{folder} has no queries: propose some first")
    annotator = name_of(config.annotator)
    with open_writer(answer_file(folder)) as writer:
        if config.web:
            try:
                from shatter.cli.label import web
            except ImportError as error:
                raise UsageError(
                    f"--web needs flask ({error}): pip install 'shatter-lm[web]'"
                ) from error
            app = web.make_app(queries, writer, seed=config.seed)
            web.serve(app, config.port, say=partial(say, console))
            return
        with terminal.open_keys() as read_key:
            terminal.answer_in_terminal(
                queries,
                writer,
                annotator=annotator,
                seed=config.seed,
                console=console,
                read_key=read_key,
            )


def _learn(config: Learn, console: Console) -> None:
    bench = open_project(read_project(config.project))
    before = bench.ensemble.number
    bench = learn(bench)
    if bench.ensemble.number == before:
        console.print("no answer is new: the ensemble stays as it is")
    console.print(tables.metrics(bench.folder, bench.ensemble.history))
    say(
        console,
        f"Results in {bench.folder}: metrics.csv, summary.json, scores.jsonl (every text of the "
        "pool, and how sure the members are), label.png. Next: propose, or export",
    )


def _import(config: Import, console: Console) -> None:
    if not config.file:
        raise UsageError("--file: expected a file of preferences or of answers, found none")
    folder, annotator = Path(config.project), name_of(config.annotator)
    read_project(config.project)
    tidy(folder)
    with open_writer(answer_file(folder)) as writer:
        found = import_answers(
            config.file,
            query_folder(folder),
            writer,
            annotator=annotator,
            on_bad_row=config.on_bad_row,
        )
    say(
        console,
        f"{found.num_queries} new queries, {found.num_answers} new answers, {found.num_known} "
        f"known already, {len(found.problems)} rows left out",
    )
    for problem in found.problems[:5]:
        say(console, f"left out: {problem}")


def _export_model(config: Export, console: Console) -> None:
    say(console, export_model(open_project(read_project(config.project)), config))


def _accept(config: Accept, console: Console) -> None:
    file = answer_file(Path(config.project))
    with open_writer(file, accept=True) as writer:
        say(console, f"{file} is taken as it is, with {len(writer.events)} lines")


def name_of(annotator: str) -> str:
    """Returns the name that --annotator gives."""
    try:
        return asking.annotator_name(annotator)
    except UsageError as error:
        raise UsageError(f"--annotator: {error}") from error
