"""One document as text and as tokens: where its prompt ends, and where its last turn begins."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

from shatter.data.report import BadRow, RowsError
from shatter.data.texts import Text, shown


class TextTokenizer(Protocol):
    """The tokenizer that rows need; `shatter.models.Tokenizer` is one.

    Attributes:
      bos: the id of the token that begins a document; None = EOS serves in its place.
      eos: the id of the token that ends a document; rows cannot be encoded without it.
      adds_bos: whether documents of this model begin with `bos`.
      chat_template: the template of conversations, if there is one.
    """

    @property
    def bos(self) -> int | None: ...  # noqa: D102
    @property
    def eos(self) -> int | None: ...  # noqa: D102
    @property
    def adds_bos(self) -> bool: ...  # noqa: D102
    @property
    def chat_template(self) -> str | None: ...  # noqa: D102

    def encode(self, text: str) -> Sequence[int]:
        """Returns the ids of a text, without added special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""

    def render_chat(self, messages: Any, *, add_generation_prompt: bool = False) -> str:
        """Returns a conversation as text with special tokens; raises ValueError if it cannot."""


class Encoding(NamedTuple):
    """The tokenizer, with its `encode` cached, and the limits on lengths."""

    tokenizer: TextTokenizer
    encode: Callable[[str], tuple[int, ...]]
    bos: int
    eos: int
    max_length: int
    max_prompt_length: int | None


def make_encoding(
    tokenizer: TextTokenizer, max_length: int, max_prompt_length: int | None
) -> Encoding:
    """Returns how texts are encoded.

    Raises:
      RowsError: if the tokenizer has no EOS.
    """
    eos = tokenizer.eos
    if eos is None:
        raise RowsError(
            "the tokenizer has no EOS, so no completion can end: expected eos_token in "
            "tokenizer_config.json or eos_token_id in config.json, found neither"
        )
    encode = functools.lru_cache(4096)(lambda text: tuple(tokenizer.encode(text)))
    bos = eos if tokenizer.bos is None else tokenizer.bos
    return Encoding(tokenizer, encode, bos, eos, max_length, max_prompt_length)


def document_ids(
    prompt: Text, completion: Text, last_turn: bool, encoding: Encoding
) -> tuple[list[int], list[int], int]:
    """Encodes one document.

    Returns:
      The ids of the prompt, without an added BOS; those of the completion, with EOS; and how many
      of the completion's first ids the loss leaves out, because they are before its last turn.
    """
    eos, decode = encoding.eos, encoding.tokenizer.decode
    start, before, whole = _texts(prompt, completion, last_turn, encoding.tokenizer)
    ids = list(encoding.encode(whole))
    num = _num_before(start, ids, encoding)
    skipped = _num_before(before, ids, encoding) - num
    body = ids[num:]
    # A template may close the last turn with EOS, followed by white space at most.
    while eos in body:
        last = len(body) - 1 - body[::-1].index(eos)
        if decode(body[last + 1 :]).strip():
            break
        body = body[:last]
    if len(body) <= skipped:
        raise BadRow("completion", "at least one token before EOS", shown(completion))
    if isinstance(completion, str) and eos in body:
        raise BadRow("completion", f"EOS, token {eos}, at the end only", shown(completion))
    return ids[:num], [*body, eos], skipped


def _num_before(start: str, ids: list[int], encoding: Encoding) -> int:
    """Returns how many tokens the start of a document has; it must end where a token ends."""
    start_ids = list(encoding.encode(start)) if start else []
    if ids[: len(start_ids)] == start_ids:
        return len(start_ids)
    first = next(n for n, a in enumerate(start_ids) if ids[n : n + 1] != [a])
    decode = encoding.tokenizer.decode
    alone, merged = (decode(part[first : first + 1]) for part in (start_ids, ids))
    raise BadRow(
        "prompt",
        f"a prompt whose tokens the document begins with, token {first} being {alone!r}",
        f"{merged!r}, a token across the end of the prompt {start[-20:]!r}",
        "move the white space at the end of the prompt to the start of the completion"
        if start[-1:].isspace()
        else "let the prompt end where a word ends",
    )


def _texts(
    prompt: Text, completion: Text, last_turn: bool, tokenizer: TextTokenizer
) -> tuple[str, str, str]:
    """Returns the prompt, the text before the turns that count, and the whole document.

    Conversations are rendered by the chat template.
    """
    start = start_text(prompt, tokenizer)
    if isinstance(prompt, str):
        return start, start, start + cast(str, completion)
    turns = cast(tuple, completion)
    earlier = turns[:-1] if last_turn else ()
    try:
        before = start
        if earlier:
            before = tokenizer.render_chat([*prompt, *earlier], add_generation_prompt=True)
        whole = tokenizer.render_chat([*prompt, *turns])
    except ValueError as error:
        raise BadRow("prompt", "a conversation for the chat template", str(error)) from error
    for part in (start, before):
        if not whole.startswith(part):
            raise BadRow(
                "prompt",
                f"a template that begins the whole conversation with its prompt, ...{part[-40:]!r}",
                f"...{whole[max(len(part) - 40, 0) : len(part)]!r}",
                "the template's generation prompt must be what it writes before an answer",
            )
    # `before` can be shorter than `start` where the template hides earlier turns.
    return start, max(start, before, key=len), whole


def start_text(prompt: Text, tokenizer: TextTokenizer) -> str:
    """Returns a prompt as text; a conversation is rendered by the chat template."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise RowsError(
            "the rows are conversations and the tokenizer has no chat template: expected a "
            "template, found none; pass one (--chat_template=FILE, a Jinja template such as the "
            "chat_template of a tokenizer_config.json), or write prompts and completions as text"
        )
    try:
        return tokenizer.render_chat(list(prompt), add_generation_prompt=True)
    except ValueError as error:
        raise BadRow("prompt", "a conversation for the chat template", str(error)) from error


def with_bos(prompt: list[int], encoding: Encoding) -> list[int]:
    """Returns a prompt that begins with BOS where the tokenizer adds it or there is nothing else.

    Args:
      prompt: token ids.
      encoding: how texts are encoded.

    Returns:
      Token ids, at least one.
    """
    if not prompt or (encoding.tokenizer.adds_bos and prompt[0] != encoding.bos):
        return [encoding.bos, *prompt]
    return prompt
