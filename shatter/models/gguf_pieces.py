"""How the tokenizers of GGUF files cut texts and join pieces, in the words of tokenizer.json."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from shatter.models.fields import shown

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _cut(pattern: str) -> dict[str, Any]:
    """Returns a pre-tokenizer that makes a piece of every match of a pattern."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [_DIGITS, {**_BYTES, "use_regex": True}],
    "llama-bpe": [_cut(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), {**_BYTES, "use_regex": False}],
    "qwen2": [_cut(rf"{_WORDS}|\p{{N}}|{_REST}"), {**_BYTES, "use_regex": False}],
}
"""How texts are cut before bytes are merged, by the name of the pre-tokenizer."""

_SPACE = "▁"
_MODEL = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def byte_level(pre: Any, merges: Sequence[str], key: str) -> dict[str, Any]:
    """Returns the parts of a tokenizer that merges bytes.

    Args:
      pre: the name of the pre-tokenizer.
      merges: pairs of pieces, the first to be merged first; each "left right".
      key: the start of the keys of the file, for messages.

    Returns:
      The fields of tokenizer.json, without the vocabulary and the added tokens.

    Raises:
      ValueError: if the pre-tokenizer is unknown or an entry is no pair.
    """
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ValueError(
            f"{key}pre is {shown(pre)} (None = missing); the known pre-tokenizers are {known}"
        )
    for number, merge in enumerate(merges):
        if merge.count(" ") != 1 or " " in (merge[0], merge[-1]):
            raise ValueError(
                f"{key}merges[{number}] is {shown(merge)}; expected two pieces and a space "
                "between them"
            )
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": {**_BYTES, "add_prefix_space": True, "use_regex": True},
        # Llama 3 takes a piece that is a token as it is, whatever the merges would make of it.
        "model": {**_MODEL, "ignore_merges": pre == "llama-bpe", "merges": list(merges)},
    }


def scored_pieces(
    scores: Mapping[str, float], *, prefix: bool, unknown: str | None, has_bytes: bool
) -> dict[str, Any]:
    """Returns the parts of a SentencePiece tokenizer that merges characters by scores.

    Args:
      scores: the score of every piece that merging can make; higher ones are made first. None of
        them has a space, because texts have none when they are cut.
      prefix: whether a text begins as if there were a space before it.
      unknown: the token for what the vocabulary lacks.
      has_bytes: whether the vocabulary has a token for every byte, which then replaces `unknown`.

    Returns:
      The fields of tokenizer.json, without the vocabulary and the added tokens.
    """
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]
    model = {**_MODEL, "unk_token": unknown, "fuse_unk": True, "byte_fallback": has_bytes}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**model, "merges": _merges(scores)},
    }


def post_processor(
    names: Mapping[str, str], roles: Mapping[str, int], adds: Mapping[str, bool]
) -> dict[str, Any] | None:
    """Returns what puts special tokens around a text, which `Tokenizer.encode` leaves out.

    Args:
      names: the texts of special tokens by role.
      roles: their ids by role.
      adds: whether a text gets a token before ("bos") and after it ("eos").
    """
    if not any(adds.values()):
        return None

    def around(sequence: str) -> list[dict[str, Any]]:
        kind = int(sequence == "B")
        special = {
            role: [{"SpecialToken": {"id": names[role], "type_id": kind}}] if adds[role] else []
            for role in adds
        }
        return [*special["bos"], {"Sequence": {"id": sequence, "type_id": kind}}, *special["eos"]]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A") + around("B"),
        "special_tokens": {
            names[role]: {"id": names[role], "ids": [roles[role]], "tokens": [names[role]]}
            for role in adds
            if adds[role]
        },
    }


def _merges(scores: Mapping[str, float]) -> list[str]:
    """Returns all pairs "left right" of pieces that make a piece, the highest score first.

    SentencePiece joins, of all neighbours that make a piece, those whose piece has the highest
    score, which is what merging by this order does. Of one piece, pairs with a longer left part
    come first, as in the files of transformers.
    """
    pairs = [
        (score, end, piece)
        for piece, score in scores.items()
        for end in range(1, len(piece))
        if piece[:end] in scores and piece[end:] in scores
    ]
    # The sort is stable, so that pieces of one score stay in the order of the vocabulary.
    pairs.sort(key=operator.itemgetter(0, 1), reverse=True)
    return [f"{piece[:end]} {piece[end:]}" for _, end, piece in pairs]
