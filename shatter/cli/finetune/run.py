"""`shatter finetune`: opens the data and the model, trains, evaluates and saves the model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from shatter import models
from shatter.cli.common import binary, checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import weights_hash
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.finetune import history, learning, plan, plot, train
from shatter.cli.finetune.config import NOT_THE_RUN, Config, check
from shatter.cli.finetune.learning import Trainable
from shatter.cli.finetune.task import Split, Task, Training, load_task

FLAGS = Config
SAMPLE_PROMPTS = 4  # in samples.txt


def experiment(config: Config) -> None:
    """Fine-tunes, evaluates, saves the model, and prints where everything is."""
    check(config)
    console = open_console()
    task = load_task(config)
    if config.dry_run:
        describe(config, task, console)
        return
    steps = num_steps(config, task)
    _report_useless(config, task, console)
    with progress_bar(console, steps) as advance:
        summary = finetune(config, task, advance)
    console.print(_table(summary))
    console.print(
        f"{summary['steps']} steps, {summary['seconds']:.0f} s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s. Results in {config.output_dir}: model/, "
        "metrics.jsonl, metrics.csv, summary.json, samples.txt, finetune.png",
    )


def finetune(
    config: Config, task: Task, progress: Callable[[str, int], None] = lambda message, steps: None
) -> dict[str, Any]:
    """A run from an opened task to its folder; one that is complete is only read.

    Args:
      config: the config, checked.
      task: of `load_task`.
      progress: called with a message and the steps done since the last call.

    Returns:
      The summary: evaluations before and after, counts, speed.

    Raises:
      UsageError: if the folder holds another run, or the run went astray.
    """
    if (
        config.resume_from_checkpoint == "never"
        and (Path(config.output_dir) / "config.json").exists()
    ):
        raise UsageError(
            f"{config.output_dir} holds a run: choose another --output_dir, or leave out "
            "--resume_from_checkpoint=never to go on with it"
        )
    tokenizer = task.model.tokenizer
    facts: dict[str, Any] = {"weights": weights_hash(task.model.params), "data": _data_hash(task)}
    if task.model.commit is not None:
        facts["commit"] = task.model.commit
    if tokenizer.asks_for_date and tokenizer.date is not None:
        facts["template_date"] = tokenizer.date.isoformat()
    with run_folder.open_run_folder(
        config.output_dir, config, free=NOT_THE_RUN, flag="--output_dir", **facts
    ) as folder:
        return _run(config, task, folder, progress)


def _run(
    config: Config, task: Task, folder: Path, progress: Callable[[str, int], None]
) -> dict[str, Any]:
    for name, split in _splits(task).items():
        if split.report.problems:
            lines = [json.dumps(problem._asdict()) for problem in split.report.problems]
            run_folder.write_text(folder / f"bad_rows_{name}.jsonl", "\n".join(lines) + "\n")
    done = folder / "summary.json"
    if done.exists():
        if isinstance(config.resume_from_checkpoint, int):
            raise UsageError(
                f"--resume_from_checkpoint={config.resume_from_checkpoint}: {folder} holds a run "
                "that is complete, so that its checkpoints are gone: leave the flag out to see "
                "its results, or choose another --output_dir"
            )
        summary = _read_summary(done)
        run_folder.remove_folder(folder / "checkpoints")
        progress("complete already", plan.num_steps(config, task))
        return summary
    result = train.train(config, task, folder, progress=progress)
    run_folder.write_csv(folder / "metrics.csv", history.csv_rows(config, result.history))
    try:
        _save_model(folder / "model", config, task, result.trainable)
    except ValueError as error:  # of parameters that are not finite
        raise UsageError(
            f"the model cannot be saved: {error}; the run went astray after its last metrics: "
            "lower --learning_rate in another --output_dir"
        ) from error
    if config.objective != "reward_model" and config.num_generations:
        _write_samples(folder / "samples.txt", config, task, result.trainable)
    evaluations = [row for row in result.history if history.is_evaluation(row)]
    summary = {
        "before": evaluations[0],
        "after": evaluations[-1],
        "steps": plan.num_steps(config, task),
        "seconds": result.seconds,
        "tokens_per_second": result.tokens / result.seconds,
        "rows": {name: _counts(split) for name, split in _splits(task).items()},
        "parameters": _num_parameters(task.model.params),
        "trained": _num_parameters(result.trainable),
    }
    plot.draw(config, result.history, folder / "finetune.png")
    run_folder.write_json(done, summary)
    checksums.seal(done)
    run_folder.remove_folder(folder / "checkpoints")
    return summary


def _read_summary(path: Path) -> dict[str, Any]:
    """Returns the summary of a complete run, as it was written."""
    summary = run_folder.read_json(path)
    if not checksums.is_sealed(path):  # the process was killed before it sealed the file
        checksums.seal(path)
    try:
        checksums.verify(path)
    except UsageError as error:
        raise UsageError(
            f"{error}: delete {path} and {path.name}.sha256, and the run makes them anew"
        ) from error
    return summary


def num_steps(config: Config, task: Task) -> int:
    """Steps of the optimiser of the whole run.

    Raises:
      UsageError: if they are too many to count.
    """
    steps = plan.num_steps(config, task)
    if steps > binary.LARGEST_WHOLE:
        raise UsageError(
            f"--num_train_epochs={config.num_train_epochs} makes {steps:,} steps: expected at most "
            f"{binary.LARGEST_WHOLE:,}"
        )
    return steps


def _report_useless(config: Config, task: Task, console: Console) -> None:
    """Says which rows teach or measure nothing."""
    for name, split in _splits(task).items():
        if problems := split.report.problems:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            console.print(
                f"{name}: {problems[0]}{more}: see {config.output_dir}/bad_rows_{name}.jsonl",
            )


def describe(config: Config, task: Task, console: Console) -> None:
    """What a run would do, in words; compiles nothing and writes nothing."""
    model, table = task.model, Table(title="rows", title_justify="left")
    titles = ("rows", "skipped", "comparisons", "cut prompts", "cut completions", "tokens")
    for name in ("", *titles, "median length", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for name, split in _splits(task).items():
        report, lengths = split.report, [row.length for row in split.encoded]
        cut = (report.truncated_prompts, report.truncated_completions)
        counts = (report.kept, report.skipped, len(split.encoded), *cut, report.tokens)
        numbers = (*counts, int(np.median(lengths)), max(lengths))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    for split in _splits(task).values():
        for problem in split.report.problems[:5]:
            console.print(f"bad row: {problem}")
    first = task.train.encoded[0]
    console.print("\nThe first comparison, token by token; [brackets] are what the loss counts:")
    skipped = first.skipped or (0,) * len(first.completions)
    for rank, completion, num in zip(first.ranks, first.completions, skipped, strict=True):
        before = np.concatenate([first.prompt, completion[:num]])
        text = "".join(_shown(model.tokenizer, token) for token in before)
        marked = "".join(f"[{_shown(model.tokenizer, token)}]" for token in completion[num:])
        console.print(f"  rank {rank}: {text}{marked}")
    if any(row.skipped for row in task.train.encoded):
        console.print(
            "Of conversations without a prompt of their own the loss counts the last turn alone."
        )
    steps = num_steps(config, task)
    trained = jax.eval_shape(
        lambda key: learning.start(config, model, key), jax.eval_shape(lambda: jax.random.key(0))
    )
    parameters, num_trained = _num_parameters(model.params), _num_parameters(trained)
    size, longest = plan.batch_size(config), max(row.length for row in task.train.encoded)
    slots = max(len(row.completions) for row in task.train.encoded)
    logits = 4 * size * slots * longest * model.config.vocab_size
    memory = 4 * parameters + 16 * num_trained + 3 * logits
    console.print(
        f"\n{parameters:,} parameters, {num_trained:,} of them trained; {steps:,} steps of "
        f"{size * config.gradient_accumulation_steps} comparisons on {len(plan.devices(config))} "
        f"{jax.default_backend()} device(s).\nMemory: about {memory / 1e6:,.0f} MB (pretrained and "
        "trained parameters, gradient, two moments, three copies of the longest batch's logits; "
        "activations of the blocks come on top)."
    )


def _splits(task: Task) -> dict[str, Split | Training]:
    return {"train": task.train, **task.held_out}


def _counts(split: Split | Training) -> dict[str, int]:
    return {k: v for k, v in split.report._asdict().items() if isinstance(v, int)}


def _num_parameters(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _shown(tokenizer: models.Tokenizer, token: int) -> str:
    """A token as text, its spaces and line breaks visible."""
    text = tokenizer.backend.id_to_token(int(token)) or f"<{token}>"
    return text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\\n")


def _data_hash(task: Task) -> str:
    digest = hashlib.sha256()
    for split in _splits(task).values():
        for row in split.encoded:
            about = f"{row.ranks}{row.weight}{row.votes}{row.skipped}{len(row.prompt)}"
            digest.update(about.encode())
            for ids in (row.prompt, *row.completions):
                digest.update(ids.tobytes())
    digest.update(task.train.ranks.tobytes() + task.train.weight.tobytes())
    return digest.hexdigest()


def _save_model(folder: Path, config: Config, task: Task, trainable: Trainable) -> None:
    """The model folder, or the adapters in the PEFT layout; a reward head in a file of its own."""
    model, origin = task.model, task.model.folder
    if model.lora is None:
        models.save_pretrained(folder, model.config, trainable.model, model.tokenizer, like=origin)
    else:
        models.save_lora(
            folder,
            model.config,
            trainable.model,
            model.lora,
            base=origin if model.commit is None else config.model_name_or_path,
            revision=model.commit,
            tokenizer=model.tokenizer,
            like=origin,
        )
    if trainable.head is not None:
        from safetensors.numpy import save

        with run_folder.replaced(folder / "reward_head.safetensors") as file:
            file.write(save({"score.weight": np.array(trainable.head)[None]}))


def _write_samples(path: Path, config: Config, task: Task, trainable: Trainable) -> None:
    """Responses to a few prompts by the model before and after, from the same keys."""
    model = task.model
    prompts, lines = train.unique_prompts(task)[:SAMPLE_PROMPTS], []
    size = config.num_generations
    draw = learning.make_sampler(model, num_samples=size, max_length=config.max_completion_length)
    texts: dict[str, list[list[str]]] = {}
    after = learning.assemble(model, trainable, model.params)
    for name, params in (("before", model.params), ("after", after)):
        samples = draw(params, jax.random.key(config.seed), prompts)
        mask, tokens = np.asarray(samples.mask), np.asarray(samples.tokens)
        decoded = [model.tokenizer.decode(t[m].tolist()) for t, m in zip(tokens, mask, strict=True)]
        texts[name] = [decoded[i * size : (i + 1) * size] for i in range(len(prompts))]
    for number, prompt in enumerate(prompts):
        lines += [f"prompt: {model.tokenizer.decode(prompt.tolist())!r}", ""]
        for name, answers in texts.items():
            lines += [f"  {name}:", *(f"    - {text!r}" for text in answers[number]), ""]
    run_folder.write_text(path, "\n".join(lines))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title="before and after", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, before in summary["before"].items():
        if name not in ("step", "epoch"):
            table.add_row(name, f"{before:.4f}", f"{summary['after'][name]:.4f}")
    return table
