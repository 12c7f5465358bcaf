"""`python -m experiments.label.run SUBCOMMAND`: see README.md beside this file."""

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments.common import binary
from experiments.common.binary import UsageError
from experiments.common.progress import open_console, progress_bar
from experiments.label import asking, loop, terminal
from experiments.label.config import Answer, Export, Import, Learn, Loop, Propose, check
from experiments.label.export import export
from experiments.label.folder import (
    alone,
    answer_file,
    known_queries,
    proposed,
    query_folder,
    read_project,
)
from experiments.label.imports import import_answers
from experiments.label.learn import learn
from experiments.label.project import Bench, open_project
from experiments.label.propose import propose
from experiments.label.writer import open_writer

Subcommand = (
    Annotated[Propose, tyro.conf.subcommand("propose")]
    | Annotated[Answer, tyro.conf.subcommand("answer")]
    | Annotated[Learn, tyro.conf.subcommand("learn")]
    | Annotated[Loop, tyro.conf.subcommand("loop")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def experiment(config: Any) -> None:
    """Runs a subcommand."""
    console = open_console()
    if isinstance(config, Answer):
        _answer(config, console)
        return
    with alone(config.project):
        match config:
            case Loop():  # a Propose too, so it comes first
                _loop(config, console)
            case Propose():
                _propose(config, console)
            case Learn():
                _learn(config, console)
            case Import():
                _import(config, console)
            case Export():
                _export(config, console)


def _propose(config: Propose, console: Console) -> None:
    check(config)
    bench = open_project(config)
    batch = propose(bench, config)
    table = Table(
        title=f"round {batch[0].round}, {batch[0].arm}; nats: what an answer tells by itself",
        title_justify="left",
    )
    table.add_column("query", no_wrap=True, min_width=10)
    table.add_column("nats", no_wrap=True, min_width=5, justify="right")
    for name in ("prompt", "completions"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for query in batch[:10]:
        texts = " | ".join(_shown(text) for text in query.completions)
        table.add_row(query.query_id, f"{query.score:.3f}", _shown(query.prompt), texts)
    console.print(table)
    more = f"{len(batch) - 10} more; " if len(batch) > 10 else ""
    console.print(
        f"{more}{len(batch)} queries in {query_folder(bench.folder)}. Next: python -m "
        f"experiments.label.run answer --project={config.project}",
        markup=False,
    )


def _answer(config: Answer, console: Console) -> None:
    folder = Path(config.project)
    queries = proposed(known_queries(folder))
    if not queries:
        raise UsageError(f"{folder} has no queries: propose some first")
    with open_writer(answer_file(folder)) as writer:
        if config.web:
            try:
                from experiments.label import web
            except ImportError as error:
                raise UsageError(
                    f"--web needs flask ({error}): pip install 'shatter[web]'"
                ) from error
            app = web.make_app(queries, writer, seed=config.seed)
            web.serve(app, config.port, say=lambda line: console.print(line, markup=False))
            return
        with terminal.open_keys() as read_key:
            terminal.answer_in_terminal(
                queries,
                writer,
                annotator=asking.annotator_name(config.annotator),
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
    console.print(_metrics_table(bench))
    console.print(
        f"Results in {bench.folder}: metrics.csv, summary.json, scores.jsonl (every text of the "
        "pool, and how sure the members are), label.png. Next: propose, or export",
        markup=False,
    )


def _loop(config: Loop, console: Console) -> None:
    check(config)
    with progress_bar(console, config.num_rounds * config.num_seeds) as advance:
        benches = loop.run(config, advance)
    for bench in benches:
        console.print(_metrics_table(bench))
    console.print(f"Results in {config.project}", markup=False)


def _import(config: Import, console: Console) -> None:
    if not config.file:
        raise UsageError("--file: expected a file of preferences, found none")
    folder = Path(config.project)
    read_project(config.project)
    with open_writer(answer_file(folder)) as writer:
        found = import_answers(
            config.file,
            query_folder(folder),
            writer,
            annotator=config.annotator,
            on_bad_row=config.on_bad_row,
        )
    console.print(
        f"{found.num_queries} new queries, {found.num_answers} new answers, {found.num_known} "
        f"known already, {len(found.problems)} rows left out",
        markup=False,
    )
    for problem in found.problems[:5]:
        console.print(f"left out: {problem}", markup=False)


def _export(config: Export, console: Console) -> None:
    bench = open_project(read_project(config.project))
    for line in export(bench, config):
        console.print(line, markup=False)


def _metrics_table(bench: Bench) -> Table:
    history = bench.ensemble.history
    table = Table(title=f"{bench.folder}: before and after", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in history[-1].items():
        if not isinstance(value, str):
            form = "d" if isinstance(value, int) else ".4f"
            before = f"{history[0][name]:{form}}" if name in history[0] else ""
            table.add_row(name, before, f"{value:{form}}")
    return table


def _shown(text: Any) -> str:
    text = text if isinstance(text, str) else " ".join(f"{m['content']}" for m in text)
    return terminal.visible(" ".join(text.split()))[:60]


if __name__ == "__main__":
    binary.main(Subcommand, experiment)  # type: ignore[arg-type]
