"""Builds the tokenizer of a GGUF file, as the files of a Hugging Face folder."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from shatter.models.fields import FLAG, Field, check_fields, shown
from shatter.models.gguf_header import Header
from shatter.models.gguf_pieces import byte_level, post_processor, scored_pieces
from shatter.models.tokenizer import Tokenizer, open_backend

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_FIELDS = {
    f"{_KEY}model": Field("text"),
    f"{_KEY}tokens": Field("texts"),
    f"{_KEY}merges": Field("texts"),
    f"{_KEY}add_bos_token": FLAG,
    f"{_KEY}add_eos_token": FLAG,
    f"{_KEY}add_space_prefix": FLAG,
    _TEMPLATE: Field("text"),
}
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""The roles of special tokens, and their names in the file."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""The types of tokens in the file."""


def read_tokenizer(header: Header, vocab_size: int) -> Tokenizer | None:
    """Builds the tokenizer of a GGUF file.

    Args:
      header: the header of the file.
      vocab_size: the number of rows of the embedding; the file has a token for each of them.

    Returns:
      The tokenizer, whose files `Tokenizer.save` writes; None if the file has none.

    Raises:
      ValueError: with the key, if the kind of tokenizer is unknown, or its parts are missing, have
        another type, or disagree with each other or with the vocabulary.
      ImportError: if the package tokenizers is missing.
    """
    settings = header.settings
    check_fields(settings, _FIELDS)
    kind = settings.get(f"{_KEY}model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        known = "gpt2 (merged bytes), llama (SentencePiece with scores)"
        raise ValueError(f"{_KEY}model is {shown(kind)}; the known tokenizers are {known}")
    tokens = _needed(settings, "tokens")
    if len(tokens) != vocab_size:
        raise ValueError(
            f"{_KEY}tokens has {len(tokens)} tokens, but the embedding has {vocab_size} rows: they "
            "belong to different models"
        )
    types = _numbers(settings, "token_type", len(tokens), default=_NORMAL)
    roles = _roles(settings, len(tokens))
    vocabulary = _vocabulary(tokens, types)
    # SentencePiece sees its own tokens after spaces are replaced, but not the prefix of a text.
    prefix = bool(settings.get(f"{_KEY}add_space_prefix", True))
    if kind == "gpt2":
        parts = byte_level(settings.get(f"{_KEY}pre"), _needed(settings, "merges"), _KEY)
    else:
        parts = _scored(settings, tokens, types, roles, prefix)
    added = _added_tokens(tokens, types, roles, normalized=kind == "llama" and not prefix)
    adds = {role: role in roles and _adds(settings, kind, role) for role in ("bos", "eos")}
    names = {role: tokens[number] for role, number in roles.items()}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **parts,
        "post_processor": post_processor(names, roles, adds),
        "model": {"type": "BPE", **parts["model"], "vocab": vocabulary},
    }
    template = settings.get(_TEMPLATE)
    config = _config(names, adds, template)
    return _assemble(header, tokenizer, config, roles, adds["bos"], template)


def _assemble(
    header: Header,
    tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
    roles: Mapping[str, int],
    adds_bos: bool,
    template: str | None,
) -> Tokenizer:
    """Returns the tokenizer that `load_tokenizer` would read from these files."""
    contents = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    files = {
        name: json.dumps(content, ensure_ascii=False).encode() for name, content in contents.items()
    }
    texts = {key: text for key, text in config.items() if key[:-6] in roles and text}
    return Tokenizer(
        files=files,
        backend=open_backend("the tokenizer", files["tokenizer.json"]),
        special_tokens=texts,
        bos=roles.get("bos"),
        eos=roles.get("eos"),
        pad=roles.get("pad"),
        adds_bos=adds_bos,
        vocab_size=1 + max(tokenizer["model"]["vocab"].values(), default=-1),
        chat_template=template,
        template_name=f"the chat template of {header.file}",
    )


def _needed(settings: Mapping[str, Any], name: str) -> Any:
    if _KEY + name not in settings:
        raise ValueError(f"{_KEY}{name} is missing")
    return settings[_KEY + name]


def _numbers(settings: Mapping[str, Any], name: str, size: int, *, default: int) -> np.ndarray:
    """Returns a list of numbers, one a token."""
    numbers = settings.get(_KEY + name, np.full(size, default))
    if not isinstance(numbers, np.ndarray) or len(numbers) != size:
        found = f"{len(numbers)}" if isinstance(numbers, np.ndarray | list) else shown(numbers)
        raise ValueError(f"{_KEY}{name}: expected {size} numbers, one a token, found {found}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{_KEY}{name} holds numbers that are NaN or infinite")
    return numbers


def _roles(settings: Mapping[str, Any], size: int) -> dict[str, int]:
    """Returns the ids of the special tokens."""
    keys = {role: f"{_KEY}{name}_token_id" for role, name in _ROLES.items()}
    check_fields(settings, dict.fromkeys(keys.values(), Field("integer", 0, size - 1)))
    return {role: settings[key] for role, key in keys.items() if key in settings}


def _vocabulary(tokens: list[str], types: np.ndarray) -> dict[str, int]:
    """Returns the ids by token, without what only fills up the rows of the embedding."""
    vocabulary: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, types.tolist(), strict=True)):
        if kind == _UNUSED and token == f"[PAD{number}]":
            continue
        if (first := vocabulary.setdefault(token, number)) != number:
            raise ValueError(f"{_KEY}tokens has {token!r} twice, as {first} and {number}")
    return vocabulary


def _added_tokens(
    tokens: list[str], types: np.ndarray, roles: Mapping[str, int], *, normalized: bool
) -> list[dict[str, Any]]:
    """Returns the tokens that are found in a text before it is cut into pieces.

    If `normalized`, those that are not special are found after spaces have been replaced.
    """
    special = {*np.flatnonzero(np.isin(types, (_CONTROL, _UNKNOWN))).tolist(), *roles.values()}
    added = special | set(np.flatnonzero(types == _USER_DEFINED).tolist())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return [
        {
            "id": number,
            "content": tokens[number],
            **flags,
            "normalized": normalized and number not in special,
            "special": number in special,
        }
        for number in sorted(added)
        if tokens[number]
    ]


def _scored(
    settings: Mapping[str, Any],
    tokens: list[str],
    types: np.ndarray,
    roles: Mapping[str, int],
    prefix: bool,
) -> dict[str, Any]:
    _needed(settings, "scores")
    scores = _numbers(settings, "scores", len(tokens), default=0).tolist()
    unknown = [*np.flatnonzero(types == _UNKNOWN).tolist()]
    number = roles.get("unk", unknown[0] if unknown else None)
    in_bytes = {tokens[i] for i in np.flatnonzero(types == _BYTE)}
    return scored_pieces(
        {tokens[i]: scores[i] for i in np.flatnonzero(types == _NORMAL) if " " not in tokens[i]},
        prefix=prefix,
        unknown=None if number is None else tokens[number],
        has_bytes=in_bytes >= {f"<0x{byte:02X}>" for byte in range(256)},
    )


def _adds(settings: Mapping[str, Any], kind: str, role: str) -> bool:
    """Returns whether a text gets a token before (bos) or after it (eos)."""
    by_itself = role == "bos" and (kind == "llama" or settings.get(f"{_KEY}pre") == "llama-bpe")
    return bool(settings.get(f"{_KEY}add_{role}_token", by_itself))


def _config(
    names: Mapping[str, str], adds: Mapping[str, bool], template: str | None
) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {f"{role}_token": names.get(role) for role in _ROLES}
    config |= {f"add_{role}_token": flag for role, flag in adds.items()}
    config["clean_up_tokenization_spaces"] = False
    return config if template is None else config | {"chat_template": template}
