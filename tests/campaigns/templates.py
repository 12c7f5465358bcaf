"""Renders one hostile chat template; `tests.campaigns.worker` calls it in a process."""

from typing import Any

from shatter import models
from tests.campaigns.tally import kind_of

LARGEST = 10_000_000  # characters


def attempt(case: dict[str, Any]) -> str | None:
    """Renders a conversation by a template.

    Args:
      case: `folder`, the folder of a model; `value`, the template.

    Returns:
      None if the text is not too long, or the template was refused; else what went wrong.
    """
    try:
        tokenizer = models.load_tokenizer(case["folder"])
        assert tokenizer is not None
        tokenizer = tokenizer.with_chat_template(case["value"])
        text = tokenizer.render_chat([{"role": "user", "content": "ab"}])
    except ValueError as error:
        return None if "template" in str(error) else "the message does not name the template"
    except Exception as error:
        return kind_of(error)
    return None if len(text) <= LARGEST else f"renders {len(text)} characters"
