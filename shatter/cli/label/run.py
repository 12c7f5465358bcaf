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
from shatter.cli.label.arms import MOST_RESPONSES, num_candidates
from shatter.cli.label.config import (
    RANGES,
    AcceptConfig,
    AnswerConfig,
    ExportConfig,
    ImportConfig,
    LearnConfig,
    ProposeConfig,
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
    remove_leftovers,
)
from shatter.cli.label.forecasts import NoForecast, advice, record_forecast
from shatter.cli.label.imports import import_answers
from shatter.cli.label.learn import learn
from shatter.cli.label.project import Project, open_project
from shatter.cli.label.propose import propose
from shatter.cli.label.records import read_project
from shatter.cli.label.writer import open_writer

FLAGS = (
    Annotated[ProposeConfig, tyro.conf.subcommand("propose")]
    | Annotated[AnswerConfig, tyro.conf.subcommand("answer")]
    | Annotated[LearnConfig, tyro.conf.subcommand("learn")]
    | Annotated[ImportConfig, tyro.conf.subcommand("import")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[AcceptConfig, tyro.conf.subcommand("accept")]
)


def experiment(config: Any) -> None:
    """Runs the subcommand of a config."""
    _check(config)
    console, folder = open_console(), Path(config.project)
    if not isinstance(config, ProposeConfig | AcceptConfig):
        assert_answers_there(folder)
        if is_unconfirmed(answer_file(folder)):
            say(
                console,
                f"{answer_file(folder)} was written by an older version, which did not note what "
                "was confirmed: whether lines are missing is unknown",
            )
    if isinstance(config, AnswerConfig):
        _answer(config, console)
        return
    if isinstance(config, ExportConfig):
        check_export(config)
        if config.answers:  # needs no lock, and so works on a folder that cannot be written
            for line in export_answers(folder, config.answers):
                say(console, line)
        if not config.model:
            return
    with alone(config.project, "--project"):
        match config:
            case ProposeConfig():
                _propose(config, console)
            case LearnConfig():
                _learn(config, console)
            case ImportConfig():
                _import(config, console)
            case ExportConfig():
                _export_model(config, console)
            case AcceptConfig():
                _accept(config, console)


def _check(config: Any) -> None:
    """Raises a UsageError if a flag cannot be used or there is no project to work on."""
    binary.check_texts(config)
    binary.check_ranges(config, RANGES)
    if not config.project.strip():
        raise UsageError("--project: expected a folder, found none")
    if isinstance(config, ProposeConfig):
        check(config)
    elif not is_project(Path(config.project)):
        raise UsageError(
            f"--project: {config.project} is no labelling project, or not yet: propose first"
        )


def _propose(config: ProposeConfig, console: Console) -> None:
    project = open_project(config)
    batch = propose(project, config)
    console.print(tables.queries(batch))
    if (num := num_candidates(config)) < config.num_candidates:
        say(
            console,
            f"--num_candidates={config.num_candidates} was lowered to {num}: --arm={config.arm} "
            f"takes at most {MOST_RESPONSES[config.arm]} texts in all, {config.num_responses} a "
            "query; give another --arm to choose among more",
        )
    more = f"{len(batch) - 10} more; " if len(batch) > 10 else ""
    answer = f"shatter label answer --project={shlex.quote(config.project)}"
    if config.least_gain:
        say(console, advice(project, config.least_gain))
    say(console, f"{more}{len(batch)} queries in {query_folder(project.folder)}. Next: {answer}")


def _answer(config: AnswerConfig, console: Console) -> None:
    folder = Path(config.project)
    queries = proposed(known_queries(folder))
    if not queries:
        raise UsageError(f"{folder} has no queries: propose some first")
    annotator = annotator_name(config.annotator)
    with open_writer(answer_file(folder)) as writer:
        if config.web:
            try:
                from shatter.cli.label import server, web
            except ImportError as error:
                raise UsageError(
                    f"--web needs flask ({error}): pip install 'shatter-lm[web]'"
                ) from error
            app = web.make_app(queries, writer, seed=config.seed)
            server.serve(app, config.port, say=partial(say, console))
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


def _learn(config: LearnConfig, console: Console) -> None:
    project = open_project(read_project(config.project))
    num_updates = project.state.num_updates
    project = learn(project)
    if project.state.num_updates == num_updates:
        console.print("no answer to learn from is new: the ensemble stays as it is")
    console.print(tables.metrics(project.folder, project.state.history))
    show_forecast(project, console, until=config.until, until_share_kl=config.until_share_kl)
    say(
        console,
        f"Results in {project.folder}: metrics.csv, summary.json, scores.jsonl (every text of the "
        "pool, and how sure the members are), label.png. Next: propose, or export",
    )


def show_forecast(project: Project, console: Console, **levels: float | None) -> None:
    """Prints and records the forecast of a project, or says why there is none yet.

    Args:
      project: the project after it has learned.
      console: where to print.
      **levels: `until` and `until_share_kl` of `record_forecast`.
    """
    try:
        console.print(tables.forecast(record_forecast(project, **levels)))
    except NoForecast as reason:
        say(console, str(reason))


def _import(config: ImportConfig, console: Console) -> None:
    if not config.file:
        raise UsageError("--file: expected a file of preferences or of answers, found none")
    folder, annotator = Path(config.project), annotator_name(config.annotator)
    read_project(config.project)
    remove_leftovers(folder)
    with open_writer(answer_file(folder)) as writer:
        counts = import_answers(
            config.file,
            query_folder(folder),
            writer,
            annotator=annotator,
            on_bad_row=config.on_bad_row,
        )
    say(
        console,
        f"{counts.num_queries} new queries, {counts.num_answers} new answers, {counts.num_known} "
        f"known already, {len(counts.problems)} rows left out",
    )
    for problem in counts.problems[:5]:
        say(console, f"left out: {problem}")


def _export_model(config: ExportConfig, console: Console) -> None:
    say(console, export_model(open_project(read_project(config.project)), config))


def _accept(config: AcceptConfig, console: Console) -> None:
    file = answer_file(Path(config.project))
    with open_writer(file, accept=True) as writer:
        say(console, f"{file} is accepted as it is, with {len(writer.events)} lines")


def annotator_name(text: str) -> str:
    """Returns the name that --annotator gives.

    Raises:
      UsageError: naming the flag, if it is no proper name.
    """
    try:
        return asking.annotator_name(text)
    except UsageError as error:
        raise UsageError(f"--annotator: {error}") from error
