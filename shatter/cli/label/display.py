"""Texts on the terminal as what they are: no markup, no control characters."""

import json
import re
from typing import Any

from rich.console import Console
from rich.text import Text as Styled

from shatter.data.layouts import Text


def visible(text: str) -> str:
    """Returns a text whose control characters are shown instead of obeyed by the terminal.

    Args:
      text: any text.

    Returns:
      The text; its lines and tabs as they are.
    """
    text = text.replace("\r\n", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text)
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)


def say(console: Console, text: str) -> None:
    """Prints a text that may hold what people typed; a command in it stays on one line."""
    console.print(visible(text), markup=False, soft_wrap=True)


def cell(text: str) -> Styled:
    """Returns a text on one line, as a table's cell or title."""
    return Styled(visible(" ".join(text.split())))


def turns(text: Text) -> list[tuple[str, str]]:
    """Returns a text or conversation as pairs of a role, empty for a text, and what it says."""
    if isinstance(text, str):
        return [("", text)]
    return [(message["role"], _content(message)) for message in text]


def _content(message: dict[str, Any]) -> str:
    """Returns what a message says; the calls of tools that it makes as JSON."""
    said = message.get("content") or ""
    calls = message.get("tool_calls")
    parts = [said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)]
    parts += [json.dumps(calls, ensure_ascii=False)] if calls else []
    return "\n".join(part for part in parts if part)
