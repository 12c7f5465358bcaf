"""Checks texts and conversations, so that later code can rely on their form."""

import json
import math
from typing import Any

from shatter.data.report import BadRow

Message = dict[str, Any]
Text = str | tuple[Message, ...]
"""A text, or a conversation of messages with a role and a content."""

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64
"""How many levels of nesting the arguments of a tool may have."""


def checked_text(value: Any, field: str) -> Text:
    """Checks a text or a conversation, and returns a conversation as a tuple of messages.

    A message has a role and, as content, a text. The content of an assistant's message that calls
    tools may be missing, and is then None. Other fields that are null are left out.

    Args:
      value: the value in the file.
      field: its place in the row, for messages.

    Returns:
      The text or conversation.

    Raises:
      BadRow: if it is neither, or holds what UTF-8 or JSON cannot hold.
    """
    if isinstance(value, str):
        _assert_json(value, field)
        return value
    if not isinstance(value, list | tuple):
        raise BadRow(field, "a text or a list of messages", shown(value))
    return tuple(_message(message, f"{field}[{n}]") for n, message in enumerate(value))


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise BadRow(field, 'a message {"role": ..., "content": ...}', shown(value))
    if value["role"] not in ROLES:
        raise BadRow(f"{field}.role", f"one of {', '.join(ROLES)}", shown(value["role"]))
    message = {name: value for name, value in value.items() if value is not None}
    calls = message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list | tuple) and all(isinstance(call, dict) for call in calls)
    ):
        raise BadRow(f"{field}.tool_calls", "a list of objects, one a call", shown(calls))
    if message["role"] == "assistant" and calls:
        message.setdefault("content", None)
    elif not isinstance(message.get("content"), str):
        is_absent = value.get("content") is None
        mend = "only an assistant's message with tool_calls may lack it" if is_absent else ""
        raise BadRow(f"{field}.content", "a text", shown(value.get("content")), mend)
    if not isinstance(message["content"], str | None):
        raise BadRow(f"{field}.content", "a text or null", shown(message["content"]))
    _assert_json(message, field)
    return message


def _assert_json(value: Any, field: str, depth: int = 0) -> None:
    """Raises BadRow for what JSON in UTF-8 cannot hold, and for too deeply nested values."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"half a surrogate pair at character {error.start}"
            raise BadRow(field, "text that UTF-8 can hold", found) from error
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRow(field, "a finite number", shown(value))
    elif isinstance(value, dict | list | tuple):
        if depth == MAX_DEPTH:
            raise BadRow(field, f"at most {MAX_DEPTH} levels of nesting", "more")
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            is_name = isinstance(key, str)
            if is_name:
                _assert_json(key, field)
            _assert_json(part, f"{field}.{key}" if is_name else f"{field}[{key}]", depth + 1)


def text_key(text: Text) -> str:
    """Returns a text or conversation as JSON, to compare or to look it up.

    Args:
      text: the text or conversation.
    """
    return json.dumps(text, sort_keys=True, default=str)


def shown(value: Any) -> str:
    """Returns the type and the value of what a file holds, in about 80 characters, for messages.

    Args:
      value: any value.
    """
    try:
        text = repr(value)
    except RecursionError:
        text = "(nested too deeply to be shown)"
    size = f" of length {len(value)}" if isinstance(value, list | tuple) else ""
    return f"{type(value).__name__}{size} {text if len(text) <= 60 else text[:57] + '...'}"
