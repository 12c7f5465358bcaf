"""Texts that say in a prompt who answers: a group, a person, or a person's earlier answers."""

from collections.abc import Sequence
from typing import Any

from shatter.data.layouts import LABELLED_FALSE
from shatter.data.rows import Row
from shatter.data.texts import Text

GROUP = "Group of the person who answers: {}\n\n"
ANNOTATOR = "Person who answers: {}\n\n"
EXAMPLES = "Earlier answers of the person who answers:\n\n"


def with_group(prompt: Text, group: str) -> Text:
    """Returns a prompt that says to which group the person who answers belongs.

    Example:
      >>> from shatter import data
      >>> print(data.with_group("Tea or coffee?", "nurses").splitlines())
      ['Group of the person who answers: nurses', '', 'Tea or coffee?']

    Args:
      prompt: the text, or a conversation, whose first message gets it if that is of the system or
        the user; otherwise a message of the system is put before it.
      group: the group, in words that describe it.

    Returns:
      The prompt, of the same kind.
    """
    return _with_text(prompt, GROUP.format(group))


def with_annotator(prompt: Text, annotator: str) -> Text:
    """Returns a prompt that names the person who answers.

    Args:
      prompt: the text or conversation, as in `with_group`.
      annotator: the person's name.

    Returns:
      The prompt, of the same kind.
    """
    return _with_text(prompt, ANNOTATOR.format(annotator))


def with_examples(prompt: Text, examples: Sequence[Row]) -> Text:
    """Returns a prompt that begins with earlier answers of the person who answers.

    Args:
      prompt: the text or conversation.
      examples: rows, each with one best completion. Before a text stand their prompts with that
        completion, an empty line between two; before a conversation their turns, without those of
        the system.

    Returns:
      The prompt, of the same kind.
    """
    if isinstance(prompt, str):
        texts = [f"{row.prompt}{best_completion(row)}" for row in examples]
        return EXAMPLES + "".join(f"{text.strip()}\n\n" for text in texts) + prompt
    turns: list[Any] = []
    for row in examples:
        turns += [m for m in row.prompt if not _is_system(m)]
        turns += list(best_completion(row) or ())
    num_system = next((n for n, m in enumerate(prompt) if not _is_system(m)), len(prompt))
    return (*prompt[:num_system], *turns, *prompt[num_system:])


def best_completion(row: Row) -> Text | None:
    """Returns the one best completion of a row; None if there is none, or several.

    Args:
      row: the row.
    """
    place = best_place(row.ranks)
    return None if place is None or row.ranks == LABELLED_FALSE else row.completions[place]


def best_place(ranks: Sequence[int]) -> int | None:
    """Finds the one best rank.

    Args:
      ranks: smaller is better, equal = unresolved, < 0 = not shown.

    Returns:
      Its place; None if there is no rank, or several are best.
    """
    shown = [rank for rank in ranks if rank >= 0]
    if not shown or shown.count(min(shown)) > 1:
        return None
    return list(ranks).index(min(shown))


def _with_text(prompt: Text, text: str) -> Text:
    if isinstance(prompt, str):
        return text + prompt
    if prompt and prompt[0]["role"] in ("system", "developer", "user"):
        return ({**prompt[0], "content": text + prompt[0]["content"]}, *prompt[1:])
    return ({"role": "system", "content": text.strip()}, *prompt)


def _is_system(message: Any) -> bool:
    return message["role"] in ("system", "developer")
