"""Prompts as tokens: with a BOS where the model has one, as messages, never empty."""

import pytest

from experiments.common.texts import prompt_rows
from shatter.cli.common.binary import UsageError


class Letters:
    """Writes a token a letter, and a message between angle brackets."""

    bos = 1

    def __init__(self, adds_bos: bool):
        self.adds_bos = adds_bos

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        (message,) = messages
        if message["content"] == "bad":
            raise ValueError("no template")
        assert add_generation_prompt and message["role"] == "user"
        return f"<{message['content']}>"


def test_a_prompt_begins_with_the_bos_that_the_model_adds():
    assert prompt_rows(Letters(True), ("ab", "c")) == [[1, 97, 98], [1, 99]]
    assert prompt_rows(Letters(False), ("c",)) == [[99]]


def test_a_message_is_rendered_and_brings_its_own_bos():
    assert prompt_rows(Letters(True), ("a",), as_chat=True) == [[60, 97, 62]]
    with pytest.raises(UsageError, match="--setting=chat, prompt 'bad': no template"):
        prompt_rows(Letters(True), ("a", "bad"), as_chat=True)


@pytest.mark.parametrize("as_chat", [True, False])
def test_empty_prompts_are_refused(as_chat: bool):
    with pytest.raises(UsageError, match="--prompts must be texts that are not empty"):
        prompt_rows(Letters(True), ("a", " "), as_chat=as_chat)
