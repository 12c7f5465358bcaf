"""The results of a run: the model folder, samples before and after, the summary and its table."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from shatter import models
from shatter.cli.common import checksums, processes, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import count_parameters
from shatter.cli.finetune import learning, plan
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.history import is_evaluation
from shatter.cli.finetune.learning import Trainable
from shatter.cli.finetune.task import Split, Task, Training, unique_prompts
from shatter.cli.finetune.train import Result
from shatter.data.atomic import write_atomically

SAMPLE_PROMPTS = 4  # in samples.txt


def save_model(folder: Path, config: Config, task: Task, trainable: Trainable) -> None:
    """Saves the model folder, or the adapters in the PEFT layout, and a reward head in a file.

    A value head is left out: it is that of a policy in training, and checkpoints have it.

    Args:
      folder: where to.
      config: the config.
      task: the pretrained model.
      trainable: what was trained.

    Raises:
      UsageError: if the parameters are not finite.
    """
    model, origin = task.model, task.model.folder
    try:
        if model.lora is None:
            models.save_pretrained(
                folder, model.config, trainable.model, model.tokenizer, like=origin
            )
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
    except ValueError as error:
        raise UsageError(
            f"the model cannot be saved: {error}; the run went astray after its last metrics: "
            "lower --learning_rate in another --output_dir"
        ) from error
    if config.objective == "reward_model":
        from safetensors.numpy import save

        content = save({"score.weight": np.array(trainable.head)[None]})
        write_atomically(folder / "reward_head.safetensors", content)


def draw_samples(config: Config, task: Task, trainable: Trainable) -> str:
    """Draws responses of the model before and after to a few prompts, from the same random keys.

    Args:
      config: the config.
      task: the pretrained model and the prompts.
      trainable: what was trained.

    Returns:
      The content of samples.txt.
    """
    model = task.model
    prompts, lines = unique_prompts(task)[:SAMPLE_PROMPTS], []
    size = config.num_generations
    draw = learning.make_sampler(model, num_samples=size, max_length=config.max_completion_length)
    texts: dict[str, list[list[str]]] = {}
    after = learning.assemble(model, trainable, model.params)
    for name, params in (("before", model.params), ("after", after)):
        samples = draw(params, jax.random.key(config.seed), prompts)
        mask, tokens = processes.fetch((samples.mask, samples.tokens))
        decoded = [model.tokenizer.decode(t[m].tolist()) for t, m in zip(tokens, mask, strict=True)]
        texts[name] = [decoded[i * size : (i + 1) * size] for i in range(len(prompts))]
    for number, prompt in enumerate(prompts):
        lines += [f"prompt: {model.tokenizer.decode(prompt.tolist())!r}", ""]
        for name, responses in texts.items():
            lines += [f"  {name}:", *(f"    - {text!r}" for text in responses[number]), ""]
    return "\n".join(lines)


def summarise(config: Config, task: Task, result: Result) -> dict[str, Any]:
    """Returns the summary of a run: evaluations before and after, counts, speed."""
    evaluations = [row for row in result.history if is_evaluation(row)]
    return {
        "before": evaluations[0],
        "after": evaluations[-1],
        "steps": plan.run_length(config, task).num_steps,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens / result.seconds,
        "rows": {name: _counts(split) for name, split in task.splits.items()},
        **({"people": people_counts(task)} if task.people else {}),
        "parameters": count_parameters(task.model.params),
        "trained": count_parameters(result.trainable),
    }


def people_counts(task: Task) -> dict[str, dict[str, int]]:
    """Returns the counts of how prompts say who answers, by the name of the rows."""
    return {name: shown._asdict() for name, shown in task.people.items()}


def people_lines(task: Task) -> list[str]:
    """Returns how the prompts of every file say who answers, in sentences."""
    lines = []
    for name, shown in task.people.items():
        kinds = {
            "by earlier answers": shown.by_examples,
            "by name": shown.by_annotator,
            "by group": shown.by_group,
            "as everybody": shown.by_nothing,
        }
        told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
        line = f"{name}: {shown.annotators:,} persons, {shown.groups:,} groups; rows: {told}"
        if shown.unknown_annotators or shown.unknown_groups:
            line += (
                f"; not among the training rows: {shown.unknown_annotators:,} persons, "
                f"{shown.unknown_groups:,} groups"
            )
        if shown.left_out:
            line += f"; {shown.left_out:,} earlier answers left out for want of room"
        lines.append(line)
    return lines


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes the summary, whose presence says that the run is complete, and its checksum."""
    run_folder.write_json(path, summary)
    checksums.seal(path)


def read_summary(path: Path) -> dict[str, Any]:
    """Reads the summary of a complete run.

    Raises:
      UsageError: if it is not as it was written.
    """
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


def summary_table(summary: dict[str, Any]) -> Table:
    """Returns a table of the evaluations before and after."""
    table = Table(title="before and after", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, before in summary["before"].items():
        if name not in ("step", "epoch"):
            table.add_row(name, f"{before:.4f}", f"{summary['after'][name]:.4f}")
    return table


def _counts(split: Split | Training) -> dict[str, int]:
    return {k: v for k, v in split.report._asdict().items() if isinstance(v, int)}
