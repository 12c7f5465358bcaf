"""`shatter finetune`: opens the data and the model, trains, evaluates and saves the model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import weights_hash
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.finetune import history, plan, plot, results, train
from shatter.cli.finetune.config import FREE, Config, check
from shatter.cli.finetune.dry_run import count_steps, describe
from shatter.cli.finetune.task import Task, load_task

FLAGS = Config


def experiment(config: Config) -> None:
    """Fine-tunes, evaluates, saves the model, and prints where everything is."""
    check(config)
    console = open_console()
    task = load_task(config)
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
    if (
        config.resume_from_checkpoint == "never"
        and (Path(config.output_dir) / "config.json").exists()
    ):
        raise UsageError(
            f"{config.output_dir} holds a run: choose another --output_dir, or leave out "
            "--resume_from_checkpoint=never to go on with it"
        )
    with run_folder.open_run_folder(
        config.output_dir, config, free=FREE, flag="--output_dir", **_facts(task)
    ) as folder:
        return _run(config, task, folder, progress)


def _facts(task: Task) -> dict[str, Any]:
    """Returns what a run is recognised by, beside its flags, and the commit of its model."""
    tokenizer = task.model.tokenizer
    facts: dict[str, Any] = {
        "weights": weights_hash(task.model.params),
        "data": _data_hash(task),
        "held_out": list(task.held_out),  # the metrics have these names
    }
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


def _run(
    config: Config, task: Task, folder: Path, progress: Callable[[str, int], None]
) -> dict[str, Any]:
    for name, split in task.splits.items():
        if split.report.problems:
            lines = [json.dumps(problem._asdict()) for problem in split.report.problems]
            run_folder.write_text(folder / f"bad_rows_{name}.jsonl", "\n".join(lines) + "\n")
    done = folder / "summary.json"
    if done.exists():
        if isinstance(config.resume_from_checkpoint, int):
            raise UsageError(
                f"--resume_from_checkpoint={config.resume_from_checkpoint}: {folder} holds a run "
                "that is complete, so its checkpoints are gone: leave the flag out to see the "
                "results, or choose another --output_dir"
            )
        summary = results.read_summary(done)
        run_folder.remove_folder(folder / "checkpoints")
        progress("complete already", plan.run_length(config, task).num_steps)
        return summary
    result = train.train(config, task, folder, progress=progress)
    run_folder.write_csv(folder / "metrics.csv", history.csv_rows(config, result.history))
    results.save_model(folder / "model", config, task, result.trainable)
    if config.objective != "reward_model" and config.num_generations:
        results.write_samples(folder / "samples.txt", config, task, result.trainable)
    summary = results.summarise(config, task, result)
    plot.draw(config, result.history, folder / "finetune.png")
    results.write_summary(done, summary)
    run_folder.remove_folder(folder / "checkpoints")
    return summary


def _report_problems(config: Config, task: Task, console: Console) -> None:
    """Says which rows cannot be used, and where they are all listed."""
    for name, split in task.splits.items():
        if problems := split.report.problems:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            console.print(
                f"{name}: {problems[0]}{more}: see {config.output_dir}/bad_rows_{name}.jsonl",
            )
