"""Texts in programs and on the host: padded tokens, and how strings are written in tokens."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp

from shatter.types import Array

_WORD = re.compile(r"\w+|[^\w ]")
_GLUED = frozenset(".,:;?!)\n")  # what no space precedes


class Tokens(NamedTuple):
    """A text of at most O tokens: an observation or an action.

    Attributes:
      tokens: int `[O]`, the text, then padding, which is never read.
      length: int `[]`, the number of tokens of the text, 0 <= length <= O.
    """

    tokens: Array
    length: Array


class Codec(NamedTuple):
    """How strings are written in tokens.

    For a `shatter.models.Tokenizer` it is
    `Codec(tokenizer.encode, partial(tokenizer.decode, skip_special=False))`, because the end token
    belongs to an action.

    Attributes:
      encode: `(text) -> token ids`; may raise ValueError or KeyError.
      decode: `(token ids) -> text`; `decode(encode(text)) == text` for all that the environment
        says.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def join(parts: Sequence[Tokens], *, size: int | None = None) -> Tokens:
    """Returns one text after the other as one text.

    Args:
      parts: the texts, each with room for some number of tokens.
      size: the room of the result; None = the sum of the rooms. Tokens beyond it are dropped.

    Returns:
      A text.
    """
    size = sum(part.tokens.shape[0] for part in parts) if size is None else size
    tokens, start = jnp.zeros(size, int), jnp.zeros((), int)
    for part in parts:
        chex.assert_rank([part.tokens, part.length], [1, 0])
        column = jnp.arange(part.tokens.shape[0])
        target = jnp.where(column < part.length, start + column, size)
        tokens = tokens.at[target].set(part.tokens, mode="drop")
        start = start + part.length
    return Tokens(tokens, jnp.minimum(start, size))


def as_tokens(ids: Sequence[int], *, size: int | None = None) -> Tokens:
    """Returns a list of token ids as a text.

    Args:
      ids: the tokens.
      size: the room of the text; None = the number of tokens.

    Returns:
      A text.

    Raises:
      ValueError: if the tokens are more than the room.
    """
    size = len(ids) if size is None else size
    if len(ids) > size:
        raise ValueError(f"expected at most {size} tokens, found {len(ids)}: give a larger size")
    tokens = jnp.asarray([*ids, *[0] * (size - len(ids))], int)
    return Tokens(tokens, jnp.asarray(len(ids), int))


def pad(text: Tokens, size: int) -> Tokens:
    """Returns a text with room for `size` tokens, which is not less than it had.

    Args:
      text: the text.
      size: the new room.

    Returns:
      The text, with ids of the default integer type.
    """
    chex.assert_rank([text.tokens, text.length], [1, 0])
    chex.assert_type([text.tokens, text.length], int)
    room = (0, size - text.tokens.shape[0])
    return Tokens(jnp.pad(text.tokens, room).astype(int), text.length.astype(int))


def character_codec(alphabet: str) -> Codec:
    """Makes a codec with a token for every character, for models of our own.

    Args:
      alphabet: the characters, each once; a token is a place in it.

    Returns:
      The codec; `encode` raises ValueError on other characters.

    Raises:
      ValueError: if a character is there twice.
    """
    places = {character: place for place, character in enumerate(alphabet)}
    if len(places) != len(alphabet):
        raise ValueError(f"expected every character of the alphabet once, found {alphabet!r}")

    def encode(text: str) -> list[int]:
        strange = sorted(set(text) - set(places))
        if strange:
            raise ValueError(f"the alphabet has no {', '.join(map(repr, strange))}")
        return [places[character] for character in text]

    return Codec(encode, lambda ids: "".join(alphabet[int(token)] for token in ids))


def word_codec(words: Sequence[str]) -> Codec:
    """Makes a codec with a token for every word, mark and end of a line, for models of our own.

    A single space stands between two tokens, but neither before the marks `.,:;?!)` nor at the
    ends of a line. Any list of tokens has a text; a text that is spaced in another way has tokens
    that read differently, which the drivers report.

    Args:
      words: words and single marks, each once; a token is a place in it.

    Returns:
      The codec; `encode` raises ValueError on other words.

    Raises:
      ValueError: if something is there twice, or is neither one word nor one mark.
    """
    places = {word: place for place, word in enumerate(words)}
    strange = [word for word in words if not _WORD.fullmatch(word)]
    if len(places) != len(words) or strange:
        raise ValueError(f"expected single words and marks, each once, found {strange or words}")

    def encode(text: str) -> list[int]:
        said = _WORD.findall(text)
        unknown = sorted(set(said) - set(places))
        if unknown:
            raise ValueError(f"the vocabulary has no {', '.join(map(repr, unknown))}")
        return [places[word] for word in said]

    def decode(ids: Sequence[int]) -> str:
        text = ""
        for word in (words[int(token)] for token in ids):
            is_glued = not text or text.endswith("\n") or word in _GLUED
            text += word if is_glued else f" {word}"
        return text

    return Codec(encode, decode)
