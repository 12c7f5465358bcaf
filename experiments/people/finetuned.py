"""`python -m experiments.people.finetuned`: a whole model, or adapters, learn old questions.

README.md in this folder has the results and the cost.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import attribution, model_folder
from experiments.people import export
from shatter import data
from shatter.cli.common import binary, run_folder
from shatter.cli.common.people import split_scores
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.common.utilities import Form
from shatter.cli.finetune import checks
from shatter.cli.finetune.config import Config as Finetune
from shatter.cli.finetune.run import finetune
from shatter.cli.finetune.task import AS_EVERYBODY, Task, load_task

CONDITIONS: tuple[data.ConditionOn, ...] = ("none", "group", "examples")


@dataclasses.dataclass(frozen=True)
class Config:
    """What does fine-tuning on old questions give on new ones, and what does conditioning add?

    Every division of a poll's questions is one run of `shatter finetune` for each way of saying in
    the prompt who answers, with equally many steps.
    """

    dataset: str = "survey_opinions"
    """Known: survey_opinions, polis (by group and by person), ukp_convarg, pandalm (by person)."""

    by: str = "group"
    """group: learn from the votes of every group. person: learn from single answers."""

    conditions: tuple[data.ConditionOn, ...] = ("none", "group")
    """What prompts say: none, group (of the person), examples (earlier answers of the person, which
    needs --by=person)."""

    model_name_or_path: str = "stories260k"
    """The pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    run_dir: str = "runs/finetuned"
    """Folder of the runs: a folder for each data set, kind of rows, condition and division. The
    same command resumes them."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    num_seeds: int = 5
    """Number of divisions into old and new questions."""

    seed: int = 0
    """The first division; divisions are those of `experiments.people.run`."""

    num_persons: int = 60
    """--by=person: the number of persons, drawn at random."""

    num_examples: int = 4
    """With examples: the largest number of earlier answers in a prompt."""

    min_group_size: int = 5
    """As in `shatter finetune`; few persons may leave a group that is smaller."""

    utility: Form = "mean"
    """As in `shatter finetune`."""

    use_peft: bool = False
    """Train low-rank adapters of rank 16 in the place of the whole model."""

    learning_rate: float = 1e-3
    """AdamW's, at its peak."""

    max_steps: int = 22
    """Steps of every run."""

    per_device_train_batch_size: int = 16
    """Rows a step."""

    max_length: int = 256
    """Largest number of tokens of a prompt and an option."""

    gradient_checkpointing: bool = False
    """As in `shatter finetune`: less memory and more time, which long prompts may need."""

    kl_samples: int = 16
    """Responses by which the KL from the pretrained model is estimated."""

    kl_length: int = 32
    """Their largest number of tokens."""


def check(config: Config) -> None:
    """Raises an error if a flag has an impossible value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("kind of rows", (config.by,), ("group", "person"))
    binary.choose("condition", config.conditions, CONDITIONS)
    binary.at_least(config, num_seeds=2, seed=0, num_persons=1, num_examples=1, max_steps=1)
    if "examples" in config.conditions and config.by == "group":
        raise binary.UsageError(
            "--conditions: examples are earlier answers of a person, and --by=group has no persons:"
            " pass --by=person, or leave examples out"
        )


def experiment(config: Config) -> None:
    """Fine-tunes on every division with every condition, then writes and prints the table."""
    check(config)
    console, began = open_console(), time.perf_counter()
    root = Path(config.run_dir) / config.dataset / config.by
    divisions = range(config.seed, config.seed + config.num_seeds)
    runs = [(condition, division) for condition in config.conditions for division in divisions]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in config.conditions}
    with progress_bar(console, len(runs) * config.max_steps) as advance:
        for condition, division in runs:
            name = f"{condition}, division {division}"
            told = lambda message, steps, name=name: advance(f"{name}: {message}", steps)
            setting = _setting(config, condition, division, root)
            checks.check(setting)
            task = load_task(setting)
            summary = finetune(setting, task, told)
            found[condition].append(compared(summary, uniform_row(setting, task), condition))
    summary = {
        f"{condition}/{measure}": mean_interval(np.array([seed[measure] for seed in seeds]))
        for condition, seeds in found.items()
        for measure in seeds[0]
    }
    run_folder.write_json(root / "summary.json", summary)
    console.print(table(config, summary))
    console.print(f"{time.perf_counter() - began:.0f} s. Results in {root}")
    console.print(f"Data: {attribution(config.dataset)}")


def _setting(config: Config, condition: data.ConditionOn, division: int, root: Path) -> Finetune:
    """Writes the files of a division, and returns the config of a run on them."""
    folder = root / "files" / f"division{division}"
    rows = export.Config(
        config.dataset, str(folder), config.by, config.num_persons, config.data_dir, division
    )
    export.write_files(rows)
    known = {field.name for field in dataclasses.fields(Finetune)}
    if condition != "examples":
        known.remove("num_examples")  # which belongs to examples alone
    flags = dataclasses.asdict(config)
    shared = Finetune(**{name: value for name, value in flags.items() if name in known})
    return dataclasses.replace(
        shared,
        model_name_or_path=model_folder(config.model_name_or_path, config.data_dir),
        dataset_name=str(folder / "train.jsonl"),
        eval_dataset_name=(str(folder / "new.jsonl"),),
        output_dir=str(root / condition / f"division{division}"),
        condition_on=condition,
        num_generations=0,
        seed=division,
    )


def uniform_row(setting: Finetune, task: Task) -> dict[str, Any]:
    """Returns what `shatter finetune` would measure on the same rows if all shares were equal."""
    row: dict[str, Any] = {}
    for name, split in task.held_out.items():
        nothing = np.zeros((len(split.encoded), max(len(e.completions) for e in split.encoded)))
        rows = [row.row for row in split.encoded]
        scores, _ = split_scores(rows, nothing, min_group_size=setting.min_group_size)
        row |= {f"eval_{name}/{measure}": value for measure, value in scores.items()}
    return row


def compared(summary: dict[str, Any], uniform: dict[str, Any], condition: str) -> dict[str, float]:
    """Returns the measures of a run on new questions beside those of uniform shares.

    Args:
      summary: of `shatter finetune`.
      uniform: of `uniform_row`.
      condition: what its prompts said.

    Returns:
      Numbers by "measure, before", "measure" (after), "measure, uniform", and "measure less
      uniform", which is the difference of the second and the third.
    """
    before, after = measures(summary["before"], condition), measures(summary["after"], condition)
    equal = measures(uniform, condition)
    found: dict[str, float] = {}
    for name, value in after.items():
        found |= {f"{name}, before": before[name], name: value}
        if name in equal:
            found[f"{name}, uniform"] = equal[name]
            found[f"{name} less uniform"] = value - equal[name]
    return found


def measures(row: dict[str, Any], condition: str) -> dict[str, float]:
    """Returns the measures on new questions.

    Args:
      row: what `shatter finetune` measured, by its names.
      condition: what the prompts said.

    Returns:
      kl, from everybody's shares by prompts that say nothing; group_kl, from each group's by
      prompts as conditioned, each group counting once; log_loss of a person's answers by prompts as
      conditioned, and log_loss_as_everybody; kl_from_pretrained, nats a response. Measures of which
      there are no rows are left out.
    """
    told, blind = "eval_new/", f"eval_new{'' if condition == 'none' else AS_EVERYBODY}/"
    names = {
        "kl": f"{blind}soft_kl",
        "log_loss": f"{told}person_log_loss",
        "log_loss_as_everybody": f"{blind}person_log_loss",
        "kl_from_pretrained": "kl",
    }
    found = {measure: row[name] for measure, name in names.items() if name in row}
    of_groups = [
        value
        for name, value in row.items()
        if name.startswith(f"{told}group=") and name.endswith("/soft_kl")
    ]
    return found | ({"group_kl": float(np.mean(of_groups))} if of_groups else {})


def table(config: Config, summary: dict[str, Any]) -> Table:
    """Returns the table of the measures, before, after and less those of uniform shares."""
    made = Table(title=f"{config.dataset}, new questions: {config.num_seeds} divisions [95%]")
    shown = list(dict.fromkeys(name.partition("/")[2] for name in summary))
    made.add_column("measure")
    for condition in config.conditions:
        made.add_column(condition, justify="right")
    for measure in shown:
        values = (summary.get(f"{condition}/{measure}") for condition in config.conditions)
        made.add_row(measure, *map(format_interval, values))
    return made


if __name__ == "__main__":
    binary.main(Config, experiment)
