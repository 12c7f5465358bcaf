"""What the files beside tokenizer.json say: special tokens, added tokens, the chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""The settings of an added token, each true or false."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
      path: of the file.

    Returns:
      The object.

    Raises:
      ValueError: if it cannot be read, is not JSON or no object.
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
    """Reads tokenizer_config.json over special_tokens_map.json.

    Args:
      folder: of the tokenizer.

    Returns:
      Their fields.

    Raises:
      ValueError: if a file cannot be read or a field does not hold what belongs there.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        found = read_json(path)
        for role in ("bos", "eos", "pad"):
            value = found.get(f"{role}_token")
            given = value.get("content") if isinstance(value, dict) else value
            if not isinstance(given, str | None) or (isinstance(value, dict) and given is None):
                expected = 'a text, {"content": a text} or null'
                raise ValueError(f"{path}: {role}_token: expected {expected}, {_found(value)}")
        for key, value in found.items():
            if text := token_text(key, value):
                _assert_utf8(text, path, key)
        adds_bos = found.get("add_bos_token")
        if not isinstance(adds_bos, bool | None):
            raise ValueError(
                f"{path}: add_bos_token: expected true, false or null, {_found(adds_bos)}"
            )
        settings |= found
    return settings


def token_text(key: str, value: Any) -> str | None:
    """The text of a special token.

    Args:
      key: its field, such as `eos_token`.
      value: a text, or an object with the text as its `content`.

    Returns:
      The text; None for fields that are no tokens, and for empty texts.
    """
    if not key.endswith("_token"):
        return None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def model_token(folder: Path, key: str) -> int | None:
    """Reads a token's id from config.json.

    Args:
      folder: of the model.
      key: the field, such as `eos_token_id`.

    Returns:
      The id, of a list the first; None where there is none or it is below 0.

    Raises:
      ValueError: if config.json cannot be read or holds something else there.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    given = read_json(path).get(key)
    value = given[0] if isinstance(given, list) and given else given
    if not isinstance(value, int | None) or isinstance(value, bool) or (value or 0) >= 2**31:
        expected = "a whole number below 2^31, a list of them or null"
        raise ValueError(f"{path}: {key}: expected {expected}, {_found(given)}")
    return value if value is not None and value >= 0 else None


def chat_template(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """The chat template of chat_template.jinja, or else of tokenizer_config.json.

    Args:
      folder: of the tokenizer.
      config: of `special_settings`.

    Returns:
      The source, of several templates that of the default; and what messages call it.

    Raises:
      ValueError: if it is no text in UTF-8.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_bytes().decode(), f"the chat template {path}"
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as UTF-8: {error}") from error
    path = folder / "tokenizer_config.json"
    template, is_list = config.get("chat_template"), False
    if isinstance(template, list):
        named = [e for e in template if isinstance(e, dict) and isinstance(e.get("name"), str)]
        is_list = len(named) < len(template) or any("template" not in entry for entry in named)
        template = {e["name"]: e.get("template") for e in named}.get("default")
    if is_list or not isinstance(template, str | None):
        expected = 'a text, a list of {"name": ..., "template": ...} or null'
        found = _found(config["chat_template"])
        raise ValueError(f"{path}: chat_template: expected {expected}, {found}")
    if template is not None:
        _assert_utf8(template, path, "chat_template")
    return template, f"the chat template of {path}"


def add_missing_tokens(
    backend: Any, folder: Path, config: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Adds the tokens that stand beside tokenizer.json and not in it, as transformers does.

    Args:
      backend: the `tokenizers.Tokenizer`, which is changed.
      folder: of the tokenizer, with tokenizer_config.json (`added_tokens_decoder`) or
        added_tokens.json, or both.
      config: of `special_settings`.

    Returns:
      The settings of the tokens that were added, by their ids.

    Raises:
      ValueError: if a token is described in another way than these files have it, or its id is not
        the one at which it comes to stand.
    """
    import tokenizers

    special = {text for key, value in config.items() if (text := token_text(key, value))}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added: dict[int, dict[str, Any]] = {}
    for source, number, given in _tokens_beside(folder, config, special):
        text = given["content"]
        if text not in known:
            is_special = given.get("special", False) or text in special
            add = backend.add_special_tokens if is_special else backend.add_tokens
            add([tokenizers.AddedToken(**given)])
            known.add(text)
            added[number] = given
        if backend.token_to_id(text) != number:
            raise ValueError(
                f"{source}: token {text!r}: expected the id {backend.token_to_id(text)}, which it "
                f"has with tokenizer.json, found {number}: are the files of two models mixed?"
            )
    return added


def _tokens_beside(
    folder: Path, config: Mapping[str, Any], special: set[str]
) -> list[tuple[Path, int, dict[str, Any]]]:
    """Tokens by their ids: the file, the id and the settings with the text as `content`."""
    path, found = folder / "tokenizer_config.json", []
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
        found.append((path, int(key[:10]), {"content": value["content"], **flags}))
    path = folder / "added_tokens.json"
    for text, number in (read_json(path) if path.is_file() else {}).items():
        if not text or not isinstance(number, int) or isinstance(number, bool):
            expected = "a token's text and its id, a whole number"
            raise ValueError(f"{path}: {text!r}: expected {expected}, {_found(number)}")
        _assert_utf8(text, path, repr(text))
        found.append((path, number, {"content": text, "special": text in special}))
    # Ids are given in the order of adding; what tokenizer_config.json says in full comes first.
    return sorted(found, key=lambda token: token[1])


def _assert_utf8(text: str, path: Path, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair at character {error.start}"
        raise ValueError(f"{path}: {field}: expected text that UTF-8 can hold, {found}") from error


def _found(value: Any) -> str:
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"found {type(value).__name__} {shown}"
