"""Texts for the terminal, without markup and without control characters."""

import json
import re
from typing import Any

from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text as Styled

from shatter.data.layouts import Text


def visible(text: str) -> str:
    """Returns a text in which control characters are replaced by characters that show them.

    The terminal would obey control characters. Newlines and tabs stay.

    Args:
      text: any text.

    Returns:
      The text.
    """
    text = text.replace("\r\n", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)


def say(console: Console, text: str) -> None:
    """Prints a text that people may have typed, unwrapped, so that commands in it stay whole."""
    # Segments, because rich replaces the tabs of a text by spaces.
    console.print(Segments([Segment(visible(text) + "\n")]), end="", soft_wrap=True)


def cell(text: str) -> Styled:
    """Returns a text on one line, for a cell or the title of a table."""
    return Styled(visible(" ".join(text.split())))


def turns(text: Text) -> list[tuple[str, str]]:
    """Returns a conversation as pairs of role and text; a text has the role ""."""
    if isinstance(text, str):
        return [("", text)]
    return [(message["role"], _content(message)) for message in text]


def _content(message: dict[str, Any]) -> str:
    """Returns the text of a message; the tool calls that it makes follow as JSON."""
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    parts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]
    parts += [json.dumps(calls, ensure_ascii=False)] if calls else []
    return "\n".join(part for part in parts if part)
