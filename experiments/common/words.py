"""Words as tokens, and whether a response says one of them."""

import jax.numpy as jnp

from shatter.models import Tokenizer
from shatter.types import Array

Words = tuple[tuple[int, ...], ...]
"""Words, each the tokens of it."""


def word_tokens(tokenizer: Tokenizer, word: str) -> tuple[int, ...]:
    """Returns the tokens of a word, or of a punctuation mark, in the middle of a text."""
    text = f"a {word}" if word[0].isalnum() else f"a{word}"
    return tuple(tokenizer.encode(text)[len(tokenizer.encode("a")) :])


def mentions(tokens: Array, mask: Array, words: Words) -> Array:
    """Returns whether a response has the tokens of one of the words, one after another.

    Args:
      tokens: int `[..., T]`.
      mask: bool `[..., T]`, true on the response's tokens.
      words: the words.

    Returns:
      bool `[...]`.
    """
    response = jnp.where(mask, tokens, -1)  # outside any vocabulary
    occurs = jnp.zeros(tokens.shape[:-1], bool)
    for word in words:
        places = response.shape[-1] - len(word) + 1
        here = jnp.ones((*tokens.shape[:-1], places), bool)
        for shift, token in enumerate(word):
            here = here & (response[..., shift : shift + places] == token)
        occurs = occurs | jnp.any(here, axis=-1)
    return occurs
