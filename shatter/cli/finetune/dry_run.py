"""`--dry_run`: shows what a run would do, and compiles and writes nothing."""

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from shatter import models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import count_parameters
from shatter.cli.finetune import learning, places, plan
from shatter.cli.finetune.config import ONLINE, Config
from shatter.cli.finetune.results import people_lines
from shatter.cli.finetune.task import Task
from shatter.factored import sizes


def describe(config: Config, task: Task, console: Console) -> None:
    """Shows the rows, the first comparison in tokens, the steps and the memory of a run.

    Args:
      config: the config.
      task: the model and the comparisons.
      console: where to show them.
    """
    console.print(_table(task))
    for split in task.splits.values():
        for problem in split.report.problems[:5]:
            console.print(f"bad row: {problem}")
    for line in people_lines(task):
        console.print(line)
    _show_first(config, task, console)
    num_steps = count_steps(config, task)
    trained = jax.eval_shape(
        lambda key: learning.start(config, task.model, key),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    parameters, num_trained = count_parameters(task.model.params), count_parameters(trained)
    mesh = places.mesh_of(config)
    size, rows = plan.batch_size(config), task.train.encoded
    num_slots = max(len(row.completions) for row in rows)
    longest, shown = max(row.length for row in rows), "comparisons"
    if config.objective in ONLINE:
        num_slots, shown = config.num_generations, f"prompts ({config.num_generations} completions)"
        longest += config.max_completion_length
    logits = size * num_slots * longest * task.model.config.vocab_size
    held_logits = sizes.slice_size() if logits > sizes.MULTIPLIED_OUT_UP_TO else logits
    base, own = (places.count_bytes(config, tree) for tree in (task.model.params, trained))
    memory = base + 4 * own + 3 * 4 * held_logits / mesh.size
    of_each = " of each" if mesh.size > 1 else ""
    console.print(
        f"\n{parameters:,} parameters, {num_trained:,} of them trained; {num_steps:,} steps of "
        f"{size * config.gradient_accumulation_steps} {shown} on {mesh.size} "
        f"{jax.default_backend()} device(s) ({places.describe(mesh)}).\nMemory{of_each}: about "
        f"{memory / 1e6:,.0f} MB (pretrained and trained parameters, gradient, two moments, and "
        "three copies of the longest batch's logits, or of a slice where they are many; the "
        "activations of the blocks come on top)."
    )


def count_steps(config: Config, task: Task) -> int:
    """Returns the number of steps of the optimiser in the whole run.

    Raises:
      UsageError: if there are too many to count.
    """
    num_steps = plan.run_length(config, task).num_steps
    if num_steps > binary.LARGEST_WHOLE:
        raise UsageError(
            f"--num_train_epochs={config.num_train_epochs} makes {num_steps:,} steps: expected at "
            f"most {binary.LARGEST_WHOLE:,}"
        )
    return num_steps


def _table(task: Task) -> Table:
    """Returns a table of the rows, what was cut from them, and their lengths in tokens."""
    table = Table(title="rows", title_justify="left")
    titles = ("rows", "skipped", "comparisons", "cut prompts", "cut completions", "tokens")
    for name in ("", *titles, "median length", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for name, split in task.splits.items():
        report, lengths = split.report, [row.length for row in split.encoded]
        cut = (report.truncated_prompts, report.truncated_completions)
        counts = (report.kept, report.skipped, len(split.encoded), *cut, report.tokens)
        numbers = (*counts, int(np.median(lengths)), max(lengths))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _show_first(config: Config, task: Task, console: Console) -> None:
    """Shows the first comparison token by token, in brackets what the loss counts; or a prompt."""
    tokenizer, first = task.model.tokenizer, task.train.encoded[0]
    if config.objective in ONLINE:
        text = "".join(_token_text(tokenizer, token) for token in first.prompt)
        console.print(f"\nThe first prompt, token by token: {text}")
        return
    console.print("\nThe first comparison, token by token; the loss counts those in [brackets]:")
    skipped = first.skipped or (0,) * len(first.completions)
    for rank, completion, num in zip(first.ranks, first.completions, skipped, strict=True):
        before = np.concatenate([first.prompt, completion[:num]])
        text = "".join(_token_text(tokenizer, token) for token in before)
        marked = "".join(f"[{_token_text(tokenizer, token)}]" for token in completion[num:])
        console.print(f"  rank {rank}: {text}{marked}")
    if any(row.skipped for row in task.train.encoded):
        console.print(
            "In conversations without a prompt of their own the loss counts only the last turn."
        )


def _token_text(tokenizer: models.Tokenizer, token: int) -> str:
    """Returns a token as text, with visible spaces and line breaks."""
    text = tokenizer.backend.id_to_token(int(token)) or f"<{token}>"
    return text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\\n")
