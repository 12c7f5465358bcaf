"""`shatter finetune`: opens the data and the model, trains, evaluates and saves the model."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from shatter.cli.common import processes, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.people import Person
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.finetune import history, places, plan, plot, results, train
from shatter.cli.finetune.checks import check, cluster_of, free_fields
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.dry_run import count_steps, describe
from shatter.cli.finetune.task import Task, load_task

FLAGS = Config


def experiment(config: Config) -> None:
    """Fine-tunes, evaluates, saves the model, and prints where everything is."""
    check(config)
    with processes.joined(cluster_of(config)):
        _experiment(config)


def _experiment(config: Config) -> None:
    console = open_console(quiet=not processes.is_first())
    task = processes.together(lambda: load_task(config))
    if config.dry_run:
        describe(config, task, console)
        return
    num_steps = count_steps(config, task)
    _report_problems(config, task, console)
    with progress_bar(console, num_steps) as advance:
        summary = finetune(config, task, advance)
    console.print(results.summary_table(summary))
    console.print(
        f"{summary['steps']} steps, {summary['seconds']:.0f} s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s. Results in {config.output_dir}: model/, "
        "metrics.jsonl, metrics.csv, summary.json, samples.txt, finetune.png",
    )


def finetune(
    config: Config, task: Task, progress: Callable[[str, int], None] = lambda message, steps: None
) -> dict[str, Any]:
    """Runs an opened task in its run folder, or reads the results if the run is complete.

    Args:
      config: the config, checked.
      task: the model and the comparisons.
      progress: called with a message and the number of steps done since the last call.

    Returns:
      The summary: evaluations before and after, counts, speed.

    Raises:
      UsageError: if the folder holds another run, or the loss or a score is not finite.
    """
    begun = Path(config.output_dir) / "config.json"
    if config.resume_from_checkpoint == "never" and processes.first(begun.exists):
        raise UsageError(
            f"{config.output_dir} holds a run: choose another --output_dir, or leave out "
            "--resume_from_checkpoint=never to go on with it"
        )
    facts = _facts(config, task)
    own = ("process_id", "dataset_name", "eval_dataset_name", "model_name_or_path")
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    processes.assert_same(flags | facts)
    with ExitStack() as stack:
        # The first process alone has the lock of the folder.
        processes.first(
            lambda: stack.enter_context(
                run_folder.open_run_folder(
                    config.output_dir,
                    config,
                    free=free_fields(config),
                    flag="--output_dir",
                    **facts,
                )
            )
        )
        return _run(config, task, _shared(Path(config.output_dir)), progress)


def _shared(folder: Path) -> Path:
    """Returns the run folder, if every process sees it."""

    def check() -> None:
        if not (folder / "config.json").exists():
            raise UsageError(
                f"--output_dir={folder} is not there for process {jax.process_index()}: choose a "
                "folder on a file system that all processes share"
            )

    processes.together(check)
    return folder


def _facts(config: Config, task: Task) -> dict[str, Any]:
    """Returns what a run is recognised by, beside its flags, and the commit of its model."""
    tokenizer = task.model.tokenizer
    facts: dict[str, Any] = {
        "batch_size": plan.batch_size(config),
        "weights": task.model.weights,
        "data": _data_hash(task),
        "held_out": list(task.held_out),  # the metrics have these names
        "held_out_people": _people_hash(task),
    }
    if task.rewards:
        facts["rewards"] = [reward.digest for reward in task.rewards]
    if task.model.commit is not None:
        facts["commit"] = task.model.commit
    if tokenizer.asks_for_date and tokenizer.date is not None:
        facts["template_date"] = tokenizer.date.isoformat()
    return facts


def _data_hash(task: Task) -> str:
    digest = hashlib.sha256()
    for split in task.splits.values():
        for row in split.encoded:
            about = f"{row.ranks}{row.weight}{row.votes}{row.skipped}{len(row.prompt)}"
            digest.update(about.encode())
            for ids in (row.prompt, *row.completions):
                digest.update(ids.tobytes())
    digest.update(task.train.ranks.tobytes() + task.train.weight.tobytes())
    return digest.hexdigest()


def _people_hash(task: Task) -> str:
    """Returns a checksum of who gave the held-out answers, by which measures are taken."""
    digest = hashlib.sha256()
    for split in task.held_out.values():
        for row in split.encoded:
            digest.update(f"{row.row.annotator!r}{row.row.group!r}".encode(errors="replace"))
    return digest.hexdigest()


def _run(
    config: Config, task: Task, folder: Path, progress: Callable[[str, int], None]
) -> dict[str, Any]:
    summary = processes.first(lambda: _begin(config, task, folder))
    if summary is not None:
        progress("complete already", plan.run_length(config, task).num_steps)
        return summary
    with jax.set_mesh(places.mesh_of(config)):
        params = places.put_params(config, task.model.params)
        placed = task._replace(model=task.model._replace(params=params))
        result = train.train(config, placed, folder, progress=progress)
        samples = None
        if config.objective != "reward_model" and config.num_generations:
            samples = results.draw_samples(config, placed, result.trainable)
        result = result._replace(trainable=processes.fetch(result.trainable))
    return processes.first(lambda: _finish(config, task, folder, result, samples))


def _begin(config: Config, task: Task, folder: Path) -> dict[str, Any] | None:
    """Lists the bad rows, and returns the summary if the run is complete."""
    for name, split in task.splits.items():
        if split.report.problems:
            lines = [json.dumps(problem._asdict()) for problem in split.report.problems]
            run_folder.write_text(folder / f"bad_rows_{name}.jsonl", "\n".join(lines) + "\n")
    done = folder / "summary.json"
    if not done.exists():
        return None
    if isinstance(config.resume_from_checkpoint, int):
        raise UsageError(
            f"--resume_from_checkpoint={config.resume_from_checkpoint}: {folder} holds a run "
            "that is complete, so its checkpoints are gone: leave the flag out to see the "
            "results, or choose another --output_dir"
        )
    summary = results.read_summary(done)
    run_folder.remove_folder(folder / "checkpoints")
    return summary


def _finish(
    config: Config, task: Task, folder: Path, result: train.Result, samples: str | None
) -> dict[str, Any]:
    """Writes what a run has brought, the summary last."""
    run_folder.write_csv(folder / "metrics.csv", history.csv_rows(config, result.history))
    for name, persons in result.people.items():
        run_folder.write_csv(folder / f"people_{name}.csv", persons, Person._fields)
    results.save_model(folder / "model", config, task, result.trainable)
    if samples is not None:
        run_folder.write_text(folder / "samples.txt", samples)
    summary = results.summarise(config, task, result)
    plot.draw(config, result.history, folder / "finetune.png")
    results.write_summary(folder / "summary.json", summary)
    run_folder.remove_folder(folder / "checkpoints")
    return summary


def _report_problems(config: Config, task: Task, console: Console) -> None:
    """Says which rows cannot be used, where they are all listed, and how prompts show people."""
    for name, split in task.splits.items():
        if problems := split.report.problems:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            console.print(
                f"{name}: {problems[0]}{more}: see {config.output_dir}/bad_rows_{name}.jsonl",
            )
    for line in results.people_lines(task):
        console.print(line)
