"""The tokenizer of a pretrained model: tokenizer.json, its special tokens and its chat template."""

import dataclasses
import datetime
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

CHAT_TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
        "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
    )
}
"""Chat templates by name, for tokenizers without one: `plain` is a line "Role: content" a message,
without special tokens."""

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

    def encode(self, text: str) -> list[int]:
        """Splits a text into tokens; adds no special token, but reads those spelt out in the text.

        The pieces of a text may have other tokens than the whole: encode the whole.

        Args:
          text: any string.

        Returns:
          Token ids.
        """
        return list(self.backend.encode(text, add_special_tokens=False).ids)

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
        https://huggingface.co/docs/transformers/chat_templating_writing. The text has the special
        tokens spelt out; `encode` reads them.

        Args:
          messages: the turns, each with `role` and `content`.
          add_generation_prompt: whether the text ends where the assistant's answer would begin.

        Returns:
          The text.

        Raises:
          ValueError: if there is no template, or the template refuses the conversation.
          ImportError: without jinja2.
        """
        if self.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template, so a conversation cannot become text: give "
                "one by --chat_template=FILE (jinja) or --chat_template=plain ('User: ...' and "
                "'Assistant: ...' lines); in code Tokenizer.with_chat_template"
            )
        template = _compile(self.chat_template)
        import jinja2

        try:
            return template.render(
                **self.special_tokens,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                strftime_now=self._strftime_now,
            )
        except (jinja2.TemplateError, TypeError) as error:
            roles = [message.get("role") for message in messages]
            raise ValueError(
                f"the chat template refuses a conversation with the roles {roles}: {error}"
            ) from error

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another chat template.

        Args:
          template: jinja source, or a name in `CHAT_TEMPLATES`: "plain".

        Returns:
          A tokenizer whose `save` writes the template too, into tokenizer_config.json, where every
          version of transformers finds it.

        Raises:
          ValueError: if `template` is no jinja.
          ImportError: without jinja2.
        """
        template = CHAT_TEMPLATES.get(template, template)
        _compile(template)
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
        return dataclasses.replace(self, files=files, chat_template=template)

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
        return self.chat_template is not None and _asks_for_date(self.chat_template)

    def _strftime_now(self, form: str) -> str:
        return (self.date or datetime.datetime.now()).strftime(form)

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
          sha256 of tokenizer.json, the chat template and, where that asks for a date that
          `with_date` has set, the date; in hexadecimal.
        """
        digest = hashlib.sha256(self.files["tokenizer.json"])
        if self.chat_template is not None:
            digest.update(b"\0" + self.chat_template.encode())
        if self.date is not None and self.asks_for_date:
            digest.update(b"\0" + self.date.isoformat().encode())
        return digest.hexdigest()


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """Reads the tokenizer of a Hugging Face model folder.

    Special tokens are those of tokenizer_config.json or special_tokens_map.json; one that neither
    mentions is taken from config.json, as for GPT-2. Truncation and padding that tokenizer.json may
    prescribe are switched off.

    Args:
      folder: with tokenizer.json, and tokenizer_config.json, special_tokens_map.json,
        chat_template.jinja and config.json where there are.

    Returns:
      The tokenizer; None without tokenizer.json.

    Raises:
      ValueError: if a file cannot be read or bos or eos is not in the vocabulary.
      ImportError: without the package tokenizers.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "a tokenizer.json needs the package tokenizers: pip install 'shatter[pretrained]'"
        ) from error

    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()

    config = _special_settings(folder)
    texts = {key: text for key, value in config.items() if (text := _token_text(key, value))}
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
            token = _model_token(folder, f"{key}_id")
            text = None if token is None else backend.id_to_token(token)
            ids[role] = None if text is None else token
            if text is not None:
                texts[key] = text
    adds_bos = config.get("add_bos_token")
    if adds_bos is None:
        adds_bos = backend.encode("a").ids[:1] == [ids["bos"]]
    return Tokenizer(
        files=files,
        backend=backend,
        special_tokens=texts,
        bos=ids["bos"],
        eos=ids["eos"],
        pad=ids["pad"],
        adds_bos=bool(adds_bos) and ids["bos"] is not None,
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        chat_template=_chat_template(files, config),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
      path: of the file.

    Returns:
      The object.

    Raises:
      ValueError: if it is not JSON or no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected one JSON object, found {type(value).__name__}")
    return value


def _special_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, over special_tokens_map.json."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    return settings


def _token_text(key: str, value: Any) -> str | None:
    """The text of a special token: a string, or the content of an AddedToken; None for others."""
    if not key.endswith("_token"):
        return None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _model_token(folder: Path, key: str) -> int | None:
    """A token's id from config.json; of a list the first."""
    if not (folder / "config.json").is_file():
        return None
    value = read_json(folder / "config.json").get(key)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and value >= 0 else None


def _chat_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """That of chat_template.jinja, else of tokenizer_config.json; of several the default."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError(
            "a chat template needs the package jinja2: pip install 'shatter[pretrained]'"
        ) from error

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant said; here its body is just rendered."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is no jinja: line {error.lineno}: {error.message}"
        ) from error


@functools.lru_cache(maxsize=8)
def _asks_for_date(source: str) -> bool:
    import jinja2.meta

    tree = _compile(source).environment.parse(source)
    return "strftime_now" in jinja2.meta.find_undeclared_variables(tree)
