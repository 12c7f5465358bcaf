"""Texts that several experiments read: prompts as tokens, texts that people judged."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import sources
from shatter import models
from shatter.cli.common.binary import UsageError


class Arguments(NamedTuple):
    """The arguments of ukp_convarg.

    Attributes:
      prompts: the debate and the side as a prompt, by topic.
      texts: the arguments as completions, by id.
    """

    prompts: dict[str, str]
    texts: dict[str, str]


class Statements(NamedTuple):
    """The citizens' statements of polis.

    Attributes:
      topics: by conversation.
      prompts: a statement as a prompt that is completed by " agree" or " disagree", by conversation
        and id.
    """

    topics: dict[str, str]
    prompts: dict[tuple[str, int], str]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a published file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_arguments(data_dir: str | Path | None) -> Arguments:
    """Reads the arguments of ukp_convarg from the data folder.

    Raises:
      SourceError: if a file is missing or not as published.
    """
    topics = json_lines(sources.locate("ukp_convarg_topics", data_dir))
    arguments = json_lines(sources.locate("ukp_convarg_arguments", data_dir))
    return Arguments(
        {t["topic"]: f"{t['title']}\nStance: {t['stance']}\nArgument:" for t in topics},
        {argument["id"]: f" {argument['text'].strip()}" for argument in arguments},
    )


def load_statements(data_dir: str | Path | None) -> Statements:
    """Reads the statements of polis from the data folder.

    Raises:
      SourceError: if a file is missing or not as published.
    """
    about = sources.locate("polis_conversations", data_dir).read_text(encoding="utf-8")
    topics = {name: record["topic"] for name, record in json.loads(about).items()}
    prompts = {
        (record["conversation"], record["id"]): (
            f"{topics[record['conversation']]}\nStatement: {record['text'].strip()}\nI"
        )
        for record in json_lines(sources.locate("polis_statements", data_dir))
    }
    return Statements(topics, prompts)


def prompt_rows(
    tokenizer: models.Tokenizer, prompts: Sequence[str], *, as_chat: bool = False
) -> list[list[int]]:
    """Returns the tokens of the prompts of a run.

    Args:
      tokenizer: of the model that continues them.
      prompts: the flag --prompts.
      as_chat: whether each is a user's message (--setting=chat) and not the beginning of a text.

    Raises:
      UsageError: if a prompt is empty, or a message cannot be rendered.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise UsageError(f"--prompts must be texts that are not empty, found {tuple(prompts)}")
    if as_chat:
        rendered = []
        for prompt in prompts:
            message = [{"role": "user", "content": prompt}]
            try:
                rendered.append(tokenizer.render_chat(message, add_generation_prompt=True))
            except ValueError as error:
                raise UsageError(f"--setting=chat, prompt {prompt!r}: {error}") from error
        return [tokenizer.encode(text) for text in rendered]
    begin = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    return [begin + tokenizer.encode(prompt) for prompt in prompts]
