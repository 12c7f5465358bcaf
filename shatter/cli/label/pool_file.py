"""Reads pool files: prompts with candidate completions, prompts alone, or preferences."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from shatter import data
from shatter.cli.common.binary import UsageError
from shatter.data.files import json_line, records
from shatter.data.layouts import Answers, Text, answers_of, parsed
from shatter.data.report import BadRow, Problem

PREFERENCE_FIELDS = {"ranks", "ratings", "votes"}
"""Fields that say which completions are better."""
COMPLETION_FIELDS = {"completions", "completion", "chosen", "rejected", "label"}
"""A row without these and without a preference is a prompt alone; its other fields are ignored."""


class PoolFile(NamedTuple):
    """The content of a pool file: prompts alone, or rows with completions."""

    prompts: list[Text]
    rows: list[data.Row]


def pool_hash(path: str) -> str:
    """Returns the sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def without_advice(error: Exception) -> str:
    """Returns the message of a reader of rows without its advice on_bad_row, which is no flag."""
    return str(error).split("\non_bad_row")[0]


def read_pool_file(path: Path) -> PoolFile:
    """Reads a pool file without checking that its rows are of one kind.

    Args:
      path: JSON lines, or any file of preferences.

    Returns:
      Its content.

    Raises:
      UsageError: if a row is bad, or there is none.
    """
    prompts: list[Text] = []
    rows: list[data.Row] = []
    source = str(path)
    try:
        for number, raw in records(path):
            source = f"{path}:{number}"
            try:
                record = parsed(raw)
                if _is_prompt(record):
                    prompts.append(_prompt(record))
                    continue
                content = _answers(record)
            except BadRow as error:
                text = raw if isinstance(raw, bytes) else json_line(raw)
                problem = Problem(source, text.decode("utf-8", "replace"), *error.args)
                raise UsageError(str(problem)) from None
            rows += [
                data.Row(
                    content.prompt,
                    content.completions,
                    ranks,
                    weight,
                    source=source,
                    last_turn=content.last_turn,
                )
                for ranks, weight in content.answers
            ]
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    except RecursionError as error:
        raise UsageError(
            f"{source}: expected texts, found lists that are nested too deep"
        ) from error
    if not prompts and not rows:
        raise UsageError(f"{path}: expected prompts with completions, found no row")
    return PoolFile(prompts, rows)


def _is_prompt(record: dict[str, Any]) -> bool:
    """Returns whether a row is a prompt alone."""
    return "prompt" in record and not (COMPLETION_FIELDS | PREFERENCE_FIELDS) & set(record)


def _prompt(record: dict[str, Any]) -> Text:
    """Returns the checked prompt of a row that is a prompt alone."""
    blank = {"role": "assistant", "content": "."}
    completion = "." if isinstance(record["prompt"], str) else [blank]
    return answers_of({"prompt": record["prompt"], "completion": completion}).prompt


def _answers(record: dict[str, Any]) -> Answers:
    """Returns a row's completions and answers; candidates without a preference have weight 0."""
    candidates = "prompt" in record and record.get("completions")
    if not candidates or not isinstance(candidates, list) or PREFERENCE_FIELDS & set(record):
        return answers_of(record)
    ranks = (0,) * len(candidates)
    return answers_of({**record, "ranks": list(ranks)})._replace(answers=[(ranks, 0.0)])
