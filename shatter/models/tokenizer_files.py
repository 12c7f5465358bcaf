"""Reads the files beside tokenizer.json: special tokens, added tokens and the chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""The settings of an added token that are true or false."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
      path: the path of the file.

    Returns:
      The object.

    Raises:
      ValueError: if the file cannot be read, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected one JSON object, found {type(value).__name__}")
    return value


def special_settings(folder: Path) -> dict[str, Any]:
    """Reads special_tokens_map.json and tokenizer_config.json; the latter takes precedence.

    Args:
      folder: the folder of the tokenizer.

    Returns:
      The fields of both.

    Raises:
      ValueError: if a file cannot be read or a field has another type.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            fields = read_json(path)
            _check_special_settings(path, fields)
            settings |= fields
    return settings


def _check_special_settings(path: Path, fields: Mapping[str, Any]) -> None:
    for role in ("bos", "eos", "pad"):
        value = fields.get(f"{role}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str | None) or (isinstance(value, dict) and text is None):
            expected = 'a text, {"content": a text} or null'
            raise ValueError(f"{path}: {role}_token: expected {expected}, {_found(value)}")
    for key, value in fields.items():
        if text := token_text(key, value):
            _assert_utf8(text, path, key)
    adds_bos = fields.get("add_bos_token")
    if not isinstance(adds_bos, bool | None):
        raise ValueError(f"{path}: add_bos_token: expected true, false or null, {_found(adds_bos)}")


def token_text(key: str, value: Any) -> str | None:
    """Returns the text of a special token.

    Args:
      key: the name of its field, such as `eos_token`.
      value: the text, or an object with the text as its `content`.

    Returns:
      The text; None if the field is not a token, or its text is empty.
    """
    if not key.endswith("_token"):
        return None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def model_token(folder: Path, key: str) -> int | None:
    """Reads the id of a token from config.json.

    Args:
      folder: the folder of the model.
      key: the name of the field, such as `eos_token_id`.

    Returns:
      The id, the first one of a list; None if there is none or it is negative.

    Raises:
      ValueError: if config.json cannot be read or the field has another type.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    value = read_json(path).get(key)
    token = value[0] if isinstance(value, list) and value else value
    if not isinstance(token, int | None) or isinstance(token, bool) or (token or 0) >= 2**31:
        expected = "a whole number below 2^31, a list of them or null"
        raise ValueError(f"{path}: {key}: expected {expected}, {_found(value)}")
    return token if token is not None and token >= 0 else None


def chat_template(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """Reads the chat template from chat_template.jinja, or else from tokenizer_config.json.

    Args:
      folder: the folder of the tokenizer.
      config: the fields of `special_settings`.

    Returns:
      The template, the default one if there are several, or None; and how messages name it.

    Raises:
      ValueError: if the field has another type, or the text is not UTF-8.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_bytes().decode(), f"the chat template {path}"
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as UTF-8: {error}") from error
    path = folder / "tokenizer_config.json"
    template, is_damaged = config.get("chat_template"), False
    if isinstance(template, list):
        named = [e for e in template if isinstance(e, dict) and isinstance(e.get("name"), str)]
        is_damaged = len(named) < len(template) or any("template" not in entry for entry in named)
        template = {e["name"]: e.get("template") for e in named}.get("default")
    if is_damaged or not isinstance(template, str | None):
        expected = 'a text, a list of {"name": ..., "template": ...} or null'
        found = _found(config["chat_template"])
        raise ValueError(f"{path}: chat_template: expected {expected}, {found}")
    if template is not None:
        _assert_utf8(template, path, "chat_template")
    return template, f"the chat template of {path}"


def add_missing_tokens(
    backend: Any, folder: Path, config: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Adds the tokens that other files have and tokenizer.json lacks, as transformers does.

    Args:
      backend: the `tokenizers.Tokenizer`, which is changed.
      folder: the folder of the tokenizer, with tokenizer_config.json (`added_tokens_decoder`) or
        added_tokens.json, or both.
      config: the fields of `special_settings`.

    Returns:
      The settings of the tokens that were added, by their ids.

    Raises:
      ValueError: if a token is not described as these files should do, or the id that it gets is
        another one than they say.
    """
    import tokenizers

    special = {text for key, value in config.items() if (text := token_text(key, value))}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added: dict[int, dict[str, Any]] = {}
    for source, number, settings in _tokens_beside(folder, config, special):
        text = settings["content"]
        if text not in known:
            is_special = settings.get("special", False) or text in special
            add = backend.add_special_tokens if is_special else backend.add_tokens
            add([tokenizers.AddedToken(**settings)])
            known.add(text)
            added[number] = settings
        if backend.token_to_id(text) != number:
            raise ValueError(
                f"{source}: token {text!r}: expected the id {backend.token_to_id(text)}, which it "
                f"has with tokenizer.json, found {number}: are the files of two models mixed?"
            )
    return added


def _tokens_beside(
    folder: Path, config: Mapping[str, Any], special: set[str]
) -> list[tuple[Path, int, dict[str, Any]]]:
    """Returns the file, the id and the settings of the tokens in other files, ordered by id."""
    path, entries = folder / "tokenizer_config.json", []
    tokens = config.get("added_tokens_decoder")
    if not isinstance(tokens, dict | None):
        raise ValueError(f"{path}: added_tokens_decoder: expected an object, {_found(tokens)}")
    for key, value in (tokens or {}).items():
        place = f"added_tokens_decoder[{key!r}]"
        is_token = isinstance(value, dict) and isinstance(value.get("content"), str)
        flags = {name: value[name] for name in FLAGS if name in value} if is_token else {}
        is_token = is_token and all(isinstance(flag, bool) for flag in flags.values())
        if not is_token or not value["content"] or not (key.isascii() and key.isdigit()):
            expected = f'an id and {{"content": a text, {", ".join(FLAGS)}: true or false}}'
            raise ValueError(f"{path}: {place}: expected {expected}, {_found(value)}")
        _assert_utf8(value["content"], path, place)
        entries.append((path, int(key[:10]), {"content": value["content"], **flags}))
    path = folder / "added_tokens.json"
    for text, number in (read_json(path) if path.is_file() else {}).items():
        if not text or not isinstance(number, int) or isinstance(number, bool):
            expected = "a token's text and its id, a whole number"
            raise ValueError(f"{path}: {text!r}: expected {expected}, {_found(number)}")
        _assert_utf8(text, path, repr(text))
        entries.append((path, number, {"content": text, "special": text in special}))
    # Sorted because tokens get their ids in the order in which they are added. The sort is stable:
    # of two entries with one id that of tokenizer_config.json, which has all settings, is first.
    return sorted(entries, key=lambda token: token[1])


def _assert_utf8(text: str, path: Path, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"found half a surrogate pair at character {error.start}"
        raise ValueError(f"{path}: {field}: expected text that UTF-8 can hold, {found}") from error


def _found(value: Any) -> str:
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"found {type(value).__name__} {shown}"
