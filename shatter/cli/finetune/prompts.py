"""Files of prompts, for objectives that learn from the model's own completions."""

from pathlib import Path
from typing import Any

from shatter import data
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.pretrained import Pretrained
from shatter.data.files import records
from shatter.data.layouts import Text, answers_of, parsed
from shatter.data.report import BadRow, Problem, raw_text, settle


def longest_prompt(config: Config) -> int:
    """Returns the largest number of tokens of a prompt that leaves room for a completion."""
    return config.max_length - config.max_completion_length


def load_prompts(
    config: Config, model: Pretrained, file: str, flag: str
) -> tuple[list[data.Encoded], data.Report]:
    """Reads and encodes the prompts of a file. Every row counts, also one with an earlier prompt.

    Args:
      config: the config.
      model: the pretrained model.
      file: the file, whose rows may hold more than a prompt.
      flag: the flag that names it, for messages.

    Returns:
      The prompts, each with EOS as its only completion, and what happened to the rows on the way.

    Raises:
      UsageError: naming the file, the row and what is wrong with it.
    """
    if not Path(file).exists():
        raise UsageError(f"{flag}: no file {file}. Pass a file of prompts (.jsonl, .parquet)")
    rows: list[data.Row] = []
    problems: list[Problem] = []
    try:
        for number, raw in records(file):
            source = f"{file}:{number}"
            try:
                rows.append(_row(parsed(raw), source))
            except BadRow as error:
                problems.append(Problem(source, raw_text(raw), *error.args))
        num_read, num_bad = len(rows) + len(problems), len(problems)
        report = data.Report(num_read, len(rows), num_bad, problems=tuple(problems))
        settle(report, num_bad, config.on_bad_row, None)
        encoded, report = data.encode_prompts(
            rows,
            model.tokenizer,
            max_prompt_length=config.max_prompt_length,
            on_bad_row=config.on_bad_row,
            report=report,
        )
        return _with_room(config, encoded, report)
    except (OSError, ValueError, ImportError, RecursionError) as error:
        raise UsageError(f"{flag}: {error}") from error


def _row(record: dict[str, Any], source: str) -> data.Row:
    """Returns a row with the prompt of an object and a completion that stands for all."""
    if any(field in record for field in ("chosen", "rejected", "completion", "completions")):
        prompt = answers_of(record).prompt  # which may be told in the completions too
    elif "prompt" in record:
        prompt = _prompt_alone(record["prompt"])
    else:
        prompt = answers_of(record).prompt  # raises the error that says what a row may be
    return data.Row(prompt, (_any_completion(prompt),), data.DEMONSTRATED, source=source)


def _prompt_alone(prompt: Any) -> Text:
    return answers_of({"prompt": prompt, "completion": _any_completion(prompt)}).prompt


def _any_completion(prompt: Any) -> Any:
    """Returns a completion of the prompt's kind; only the prompt's own tokens are kept of both."""
    return "." if isinstance(prompt, str) else ({"role": "assistant", "content": "."},)


def _with_room(
    config: Config, encoded: list[data.Encoded], report: data.Report
) -> tuple[list[data.Encoded], data.Report]:
    """Leaves out, or refuses, the prompts that leave no room for a completion."""
    room, kept = longest_prompt(config), []
    problems: list[Problem] = []
    for row in encoded:
        length = len(row.prompt)
        if length <= room:
            kept.append(row)
            continue
        expected = (
            f"at most {room} tokens, because --max_length={config.max_length} has to hold "
            f"--max_completion_length={config.max_completion_length} more"
        )
        mend = (
            f"raise --max_length, or pass --max_prompt_length={room}, and longer prompts lose "
            "their beginning"
        )
        text = row.row.prompt if isinstance(row.row.prompt, str) else str(row.row.prompt)
        found = f"{length} tokens"
        problems.append(Problem(row.row.source, text, "prompt", expected, found, mend))
    report = report._replace(
        kept=len(kept),
        skipped=report.skipped + len(problems),
        tokens=sum(len(row.prompt) for row in kept),
        problems=report.problems + tuple(problems),
    )
    settle(report, len(problems), config.on_bad_row, None)
    return kept, report
