"""The tokenizer of a pretrained model: tokenizer.json, its special tokens and its chat template."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shatter.models.templates import CHAT_TEMPLATES, TemplateError, check_template, render
from shatter.models.tokenizer_files import (
    add_missing_tokens,
    chat_template,
    model_token,
    read_json,
    special_settings,
    token_text,
)

__all__ = ["CHAT_TEMPLATES", "FILES", "Tokenizer", "load_tokenizer", "read_json"]

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""The files of a tokenizer, of which only the first is always there."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back, with what the model's authors say of special tokens and chats.

    Attributes:
      files: the content of every file of the tokenizer, by name, as loaded.
      backend: the `tokenizers.Tokenizer` that does the work.
      special_tokens: the special tokens' text by role (`bos_token`, ...), for chat templates.
      bos: id of the token that begins a document; None where there is none.
      eos: id of the token that ends a document; None where there is none.
      pad: id of the padding token; None where there is none. Masks, never ids, say what is padding.
      adds_bos: whether the model was trained on documents that begin with `bos`.
      vocab_size: 1 + the largest id.
      chat_template: jinja source that renders a conversation; None where there is none.
      date: what a chat template that asks for the date is given; None = the clock's.
      template_name: what messages call the chat template, with its file.
      added_tokens: settings by id of the tokens that tokenizer.json lacks and another file adds.
    """

    files: dict[str, bytes] = dataclasses.field(repr=False, hash=False)
    backend: Any = dataclasses.field(repr=False, compare=False)
    special_tokens: dict[str, str] = dataclasses.field(hash=False)
    bos: int | None
    eos: int | None
    pad: int | None
    adds_bos: bool
    vocab_size: int
    chat_template: str | None = dataclasses.field(default=None, repr=False)
    date: datetime.datetime | None = None
    template_name: str = dataclasses.field(default="the chat template", repr=False, compare=False)
    added_tokens: dict[int, dict[str, Any]] = dataclasses.field(
        default_factory=dict, repr=False, hash=False
    )

    def encode(self, text: str) -> list[int]:
        """Splits a text into tokens; adds no special token, but reads those spelt out in the text.

        The pieces of a text may have other tokens than the whole: encode the whole.

        Args:
          text: any string.

        Returns:
          Token ids.

        Raises:
          ValueError: if the tokenizer has no token for a part of the text.
        """
        try:
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(
                f"the tokenizer cannot encode the text {text[:40]!r}: {error}"
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Joins tokens to a text.

        Args:
          ids: token ids, an array `[T]` too.
          skip_special: whether special tokens (bos, eos, ...) are left out.

        Returns:
          The text.
        """
        return str(
            self.backend.decode([int(token) for token in ids], skip_special_tokens=skip_special)
        )

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """Renders a conversation to one text, by the tokenizer's chat template.

        The template runs in jinja's sandbox with the names that transformers gives it:
        https://huggingface.co/docs/transformers/chat_templating_writing. Its time, memory and the
        length of its text are bounded (`shatter.models.templates.render`). The text has the special
        tokens spelt out; `encode` reads them.

        Args:
          messages: the turns, each with `role` and `content`.
          add_generation_prompt: whether the text ends where the assistant's answer would begin.

        Returns:
          The text.

        Raises:
          ValueError: if there is no template, or the template is no jinja, raises anything at all
            on the conversation, or exceeds the bounds.
          ImportError: without jinja2.
        """
        if self.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template, so a conversation cannot become text: give "
                "one by --chat_template=FILE (jinja) or --chat_template=plain ('User: ...' and "
                "'Assistant: ...' lines); in code Tokenizer.with_chat_template"
            )
        variables = self.special_tokens | {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return render(self.chat_template, variables, self.date or datetime.datetime.now())
        except TemplateError as error:
            roles = [message.get("role") for message in messages]
            reason = f"refuses a conversation with the roles {roles}"
            reason = reason if error.compiled else "cannot be compiled by jinja"
            raise ValueError(f"{self.template_name} {reason}: {error}") from error

    def with_chat_template(self, template: str, *, name: str | None = None) -> "Tokenizer":
        """The same tokenizer with another chat template.

        Args:
          template: jinja source, or a name in `CHAT_TEMPLATES`: "plain".
          name: what messages call the template, its file for example.

        Returns:
          A tokenizer whose `save` writes the template too, into tokenizer_config.json, where every
          version of transformers finds it.

        Raises:
          ValueError: if `template` is no jinja, or too large to be compiled.
          ImportError: without jinja2.
        """
        name = "the chat template" if name is None else f"the chat template {name}"
        template = CHAT_TEMPLATES.get(template, template)
        _assert_jinja(template, name)
        files = {name: data for name, data in self.files.items() if name != "chat_template.jinja"}
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        named = config.get("chat_template")
        if isinstance(named, list):
            others = [entry for entry in named if entry["name"] != "default"]
            config["chat_template"] = [{"name": "default", "template": template}, *others]
        else:
            config["chat_template"] = template
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        files["tokenizer_config.json"] = text.encode()
        return dataclasses.replace(self, files=files, chat_template=template, template_name=name)

    def with_date(self, date: datetime.datetime) -> "Tokenizer":
        """The same tokenizer with a date of its own, so that no rendering depends on the clock.

        Args:
          date: what `strftime_now` in a chat template formats from now on; `save` does not keep it.

        Returns:
          A tokenizer whose `fingerprint` holds the date if the chat template asks for one.
        """
        return dataclasses.replace(self, date=date)

    @property
    def asks_for_date(self) -> bool:
        """Whether the chat template uses `strftime_now`: then texts depend on the date."""
        return self.chat_template is not None and _assert_jinja(
            self.chat_template, self.template_name
        )

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files as they were loaded.

        Args:
          folder: an existing folder.
        """
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)

    def fingerprint(self) -> str:
        """A hash of what decides how texts and conversations become tokens.

        Returns:
          sha256, in hexadecimal, of tokenizer.json, the tokens that other files add, the chat
          template and, where that asks for a date that `with_date` has set, the date.
        """
        digest = hashlib.sha256(self.files["tokenizer.json"])
        if self.added_tokens:
            digest.update(json.dumps(self.added_tokens).encode())
        if self.chat_template is not None:
            digest.update(b"\0" + self.chat_template.encode())
        if self.date is not None and self.asks_for_date:
            digest.update(b"\0" + self.date.isoformat().encode())
        return digest.hexdigest()


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """Reads the tokenizer of a Hugging Face model folder.

    Special tokens are those of tokenizer_config.json or special_tokens_map.json; one that neither
    mentions is taken from config.json, as for GPT-2. Tokens of tokenizer_config.json's
    `added_tokens_decoder` or of added_tokens.json that tokenizer.json lacks are added, as
    transformers does. Truncation and padding that tokenizer.json may prescribe are switched off.

    Args:
      folder: with tokenizer.json, and tokenizer_config.json, special_tokens_map.json,
        added_tokens.json, chat_template.jinja and config.json where there are.

    Returns:
      The tokenizer; None without tokenizer.json.

    Raises:
      ValueError: naming the file, if one cannot be read, a field does not hold what belongs there,
        bos or eos is not in the vocabulary, or an added token has two ids.
      ImportError: without the package tokenizers.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        return None
    files = {name: _read(folder / name) for name in FILES if (folder / name).is_file()}
    backend = _backend(folder / "tokenizer.json", files["tokenizer.json"])
    config = special_settings(folder)
    added = add_missing_tokens(backend, folder, config)
    texts = {key: text for key, value in config.items() if (text := token_text(key, value))}
    ids: dict[str, int | None] = {}
    for role in ("bos", "eos", "pad"):
        key = f"{role}_token"
        if key in config:
            ids[role] = None if key not in texts else backend.token_to_id(texts[key])
            if key in texts and ids[role] is None and role != "pad":
                raise ValueError(
                    f"{folder}: {key} is {texts[key]!r}, which tokenizer.json does not have"
                )
        else:
            token = model_token(folder, f"{key}_id")
            text = None if token is None else backend.id_to_token(token)
            ids[role] = None if text is None else token
            if text is not None:
                texts[key] = text
    adds_bos = config.get("add_bos_token")
    if adds_bos is None:
        adds_bos = _first_token(backend, folder) == ids["bos"]
    template, name = chat_template(folder, config)
    return Tokenizer(
        files=files,
        backend=backend,
        special_tokens=texts,
        bos=ids["bos"],
        eos=ids["eos"],
        pad=ids["pad"],
        adds_bos=bool(adds_bos) and ids["bos"] is not None,
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        chat_template=template,
        template_name=name,
        added_tokens=added,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _backend(path: Path, content: bytes) -> Any:
    """The tokenizer of a tokenizer.json."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "a tokenizer.json needs the package tokenizers: pip install 'shatter-lm[pretrained]'"
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{path} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _first_token(backend: Any, folder: Path) -> int | None:
    """The token that the post-processor puts before a text."""
    try:
        return next(iter(backend.encode("a").ids), None)
    except Exception as error:  # a word that the vocabulary has no token for
        path = folder / "tokenizer.json"
        raise ValueError(f"{path} cannot encode the text 'a': {error}") from error


def _assert_jinja(source: str, name: str) -> bool:
    """Whether a template asks for the date; refuses one that is no jinja."""
    try:
        return check_template(source)
    except TemplateError as error:
        raise ValueError(f"{name} cannot be compiled by jinja: {error}") from error
