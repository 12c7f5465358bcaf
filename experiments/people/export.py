"""`python -m experiments.people.export` writes a poll as files for `shatter finetune`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import sources
from experiments.people.polls import Poll, load_poll, new_questions
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console
from shatter.data.files import write_json_lines


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a poll as train.jsonl and new.jsonl, by group (votes) or by person (single answers)."""

    dataset: str = "survey_opinions"
    """Known: survey_opinions, polis (groups and persons), ukp_convarg, pandalm (persons)."""

    folder: str = "runs/poll"
    """Folder for the files."""

    by: str = "group"
    """group: the votes of every group on every question. person: single answers."""

    num_persons: int = 200
    """--by=person: the number of persons, drawn at random."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    seed: int = 0
    """Seed of the division and of the persons."""


def export(config: Config) -> None:
    """Writes the files and says how many lines are in each.

    Args:
      config: the config.

    Raises:
      UsageError: if a flag has an impossible value, or data is missing.
    """
    console = open_console()
    for path, (lines, questions) in write_files(config).items():
        console.print(f"{path}: {lines:,} lines on {questions} questions")
    console.print(f"Data: {sources.attribution(config.dataset)}")


def write_files(config: Config) -> dict[Path, tuple[int, int]]:
    """Writes train.jsonl and new.jsonl.

    Args:
      config: the config.

    Returns:
      The numbers of lines and of questions of each file.

    Raises:
      UsageError: if a flag has an impossible value, or data is missing.
    """
    binary.choose("kind of rows", (config.by,), ("group", "person"))
    binary.at_least(config, num_persons=1, seed=0)
    poll = load_poll(config.dataset, data_dir=config.data_dir)
    if config.by == "group" and not poll.groups:
        raise UsageError(f"{config.dataset} has no groups: pass --by=person")
    rng = np.random.default_rng(config.seed)
    is_new = new_questions(poll, rng)
    rows = group_lines(poll) if config.by == "group" else person_lines(poll, config, rng)
    written = {}
    for name, part in (("train", ~is_new), ("new", is_new)):
        lines = [line for number, line in rows if part[number]]
        path = Path(config.folder) / f"{name}.jsonl"
        write_json_lines(path, lines)
        written[path] = len(lines), int(part.sum())
    return written


def group_lines(poll: Poll) -> list[tuple[int, dict[str, Any]]]:
    """Returns a line for every question and group, each with the question's number."""
    return [
        (
            number,
            {
                "prompt": question.prompt,
                "completions": question.options,
                "votes": poll.counts[number, 1 + group, : len(question.options)].round(1).tolist(),
                "group": name,
            },
        )
        for number, question in enumerate(poll.questions)
        for group, name in enumerate(poll.groups)
        if poll.counts[number, 1 + group].sum() > 0
    ]


def person_lines(
    poll: Poll, config: Config, rng: np.random.Generator
) -> list[tuple[int, dict[str, Any]]]:
    """Returns a line for every answer of some persons, each with the question's number."""
    persons = np.unique(poll.answers[:, 0])
    drawn = set(rng.permutation(persons)[: config.num_persons].tolist())
    lines = []
    for person, number, option in poll.answers.tolist():
        if person in drawn:
            question, group = poll.questions[number], poll.person_groups[person]
            line: dict[str, Any] = {"prompt": question.prompt, "completions": question.options}
            line["ranks"] = [1 if k == option else 2 for k in range(len(question.options))]
            line["annotator"] = f"person {person}"
            lines.append((number, line | ({"group": poll.groups[group - 1]} if group else {})))
    return lines


if __name__ == "__main__":
    binary.main(Config, export)
