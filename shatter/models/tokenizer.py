"""The tokenizer of a pretrained model, with its special tokens and its chat template."""

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
"""The files of a tokenizer, of which all but the first may be missing."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the special tokens and the chat template of its model.

    Attributes:
      files: the content of the tokenizer's files by name, as loaded.
      backend: the `tokenizers.Tokenizer` that does the work.
      special_tokens: the texts of special tokens by role (`bos_token`, ...), for chat templates.
      bos: the id of the token that begins a document, or None.
      eos: the id of the token that ends a document, or None.
      pad: the id of the padding token, or None. Nothing here relies on it, because masks say which
        tokens are padding.
      adds_bos: whether the model was trained on documents that begin with `bos`.
      vocab_size: 1 + the largest id.
      chat_template: the jinja template that renders a conversation, or None.
      date: the date that chat templates see. None = that of the clock.
      template_name: how messages name the chat template.
      added_tokens: the settings, by id, of tokens that other files add to tokenizer.json.
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
        """Splits a text into tokens.

        No special token is added, but those spelt out in the text are recognised. The tokens of two
        texts are not always those of the two joined, so encode a text as a whole.

        Args:
          text: any text.

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
          ids: token ids, a list or an array `[T]`.
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
        """Renders a conversation as one text, by the chat template.

        The template runs in jinja's sandbox with the names that transformers offers to it,
        https://huggingface.co/docs/transformers/chat_templating_writing. Its time, its memory and
        the length of its text are bounded (`shatter.models.templates.render`). Special tokens are
        spelt out in the text, and `encode` recognises them.

        Args:
          messages: the turns, each with `role` and `content`.
          add_generation_prompt: whether the text ends where the assistant's answer would begin.

        Returns:
          The text.

        Raises:
          ValueError: if there is no template, or it is not valid jinja, raises an error on the
            conversation, or exceeds the bounds.
          ImportError: if jinja2 is missing.
        """
        if self.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template, so a conversation cannot become text: give "
                "one by --chat_template=FILE (jinja) or --chat_template=plain ('User: ...' and "
                "'Assistant: ...' lines), or in code by Tokenizer.with_chat_template"
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
        """Returns the tokenizer with another chat template.

        Args:
          template: the template, in jinja, or a name in `CHAT_TEMPLATES`: "plain".
          name: how messages name the template, for example its file.

        Returns:
          A tokenizer whose `save` writes the template into tokenizer_config.json, where every
          version of transformers finds it.

        Raises:
          ValueError: if `template` is not valid jinja, or too large to be compiled.
          ImportError: if jinja2 is missing.
        """
        name = "the chat template" if name is None else f"the chat template {name}"
        template = CHAT_TEMPLATES.get(template, template)
        _assert_jinja(template, name)
        files = {name: data for name, data in self.files.items() if name != "chat_template.jinja"}
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        templates = config.get("chat_template")
        if isinstance(templates, list):
            others = [entry for entry in templates if entry["name"] != "default"]
            config["chat_template"] = [{"name": "default", "template": template}, *others]
        else:
            config["chat_template"] = template
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        files["tokenizer_config.json"] = text.encode()
        return dataclasses.replace(self, files=files, chat_template=template, template_name=name)

    def with_date(self, date: datetime.datetime) -> "Tokenizer":
        """Returns the tokenizer with a fixed date, so that rendering does not depend on the clock.

        Args:
          date: the date that `strftime_now` in a chat template formats; `save` does not keep it.

        Returns:
          A tokenizer whose `fingerprint` depends on the date if the chat template asks for one.
        """
        return dataclasses.replace(self, date=date)

    @property
    def asks_for_date(self) -> bool:
        """Whether the chat template uses `strftime_now`, so that texts depend on the date."""
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
        """Returns a hash of all that decides how texts and conversations become tokens.

        Returns:
          The sha256, in hexadecimal, of tokenizer.json, the tokens that other files add, the chat
          template and, if that asks for a date and `with_date` has set one, the date.
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
    """Loads the tokenizer of a model in the Hugging Face layout.

    Special tokens are read from tokenizer_config.json or special_tokens_map.json, and one that
    neither mentions from config.json, as for GPT-2. Tokens that tokenizer.json lacks and that
    `added_tokens_decoder` of tokenizer_config.json or added_tokens.json has are added, as
    transformers does. Truncation and padding in tokenizer.json are switched off.

    Args:
      folder: the folder with tokenizer.json, and any of tokenizer_config.json,
        special_tokens_map.json, added_tokens.json, chat_template.jinja and config.json.

    Returns:
      The tokenizer; None if there is no tokenizer.json.

    Raises:
      ValueError: with the name of the file, if one cannot be read, a field has another type, bos or
        eos is not in the vocabulary, or an added token has two ids.
      ImportError: if the package tokenizers is missing.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        return None
    files = {name: _read(folder / name) for name in FILES if (folder / name).is_file()}
    backend = open_backend(folder / "tokenizer.json", files["tokenizer.json"])
    config = special_settings(folder)
    added = add_missing_tokens(backend, folder, config)
    texts, ids = _special_tokens(backend, folder, config)
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


def open_backend(source: str | Path, content: bytes) -> Any:
    """Builds the `tokenizers.Tokenizer` of a tokenizer.json, without truncation and padding.

    Args:
      source: the file that it comes from, for messages.
      content: the content of tokenizer.json.

    Raises:
      ValueError: if the content is damaged.
      ImportError: if the package tokenizers is missing.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "tokenizer.json needs the package tokenizers: pip install 'shatter-lm[pretrained]'"
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{source} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(
    backend: Any, folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, int | None]]:
    """Returns the texts of special tokens by field, and the ids of "bos", "eos" and "pad"."""
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
    return texts, ids


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _first_token(backend: Any, folder: Path) -> int | None:
    """Returns the token that the tokenizer itself puts before a text."""
    try:
        return next(iter(backend.encode("a").ids), None)
    except Exception as error:  # the vocabulary has no token for the text
        path = folder / "tokenizer.json"
        raise ValueError(f"{path} cannot encode the text 'a': {error}") from error


def _assert_jinja(source: str, name: str) -> bool:
    """Returns whether a template asks for the date; raises ValueError if it is not valid jinja."""
    try:
        return check_template(source)
    except TemplateError as error:
        raise ValueError(f"{name} cannot be compiled by jinja: {error}") from error
