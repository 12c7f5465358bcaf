"""The text that the family is pretrained on, and prompts that are beginnings of its lines."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import sources
from experiments.scaling.config import Config
from shatter.cli.common.binary import UsageError

HELD_OUT = 0.1  # of the characters, at the end


class Corpus(NamedTuple):
    """The text.

    Attributes:
      text: what models are pretrained on.
      held_out: what no model was pretrained on.
      alphabet: the characters of both, in order; their places are the tokens of the family.
      words: the words of both, in lower case.
      beginnings: the beginnings of these words.
    """

    text: str
    held_out: str
    alphabet: str
    words: frozenset[str]
    beginnings: frozenset[str]


def load_corpus(data_dir: str | Path | None) -> Corpus:
    """Reads tinyshakespeare from the data folder.

    Raises:
      UsageError: if the file is missing or not as published.
    """
    try:
        whole = sources.locate("tinyshakespeare", data_dir).read_text(encoding="utf-8")
    except sources.SourceError as error:
        raise UsageError(str(error)) from error
    return make_corpus(whole)


def make_corpus(whole: str) -> Corpus:
    """Divides a text; the held-out part begins with a line."""
    cut = whole.index("\n", round((1 - HELD_OUT) * len(whole))) + 1
    words = frozenset(words_of(whole))
    beginnings = frozenset(word[:end] for word in words for end in range(1, len(word) + 1))
    return Corpus(whole[:cut], whole[cut:], "".join(sorted(set(whole))), words, beginnings)


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case, without apostrophes and other marks."""
    return re.findall(r"[a-z]+", text.lower())


def prompts_of(config: Config, text: str, needed: int = 0) -> list[str]:
    """Returns the beginnings of a text's lines that are long enough to be completed.

    A prompt is the shortest beginning of whole words with at least `prompt_length` characters of
    which at least as many characters are missing. Lines that name a speaker are left out.

    Args:
      config: the config.
      text: a part of the corpus.
      needed: how many there must be.

    Returns:
      Distinct prompts, in the order of the text.

    Raises:
      UsageError: if there are fewer.
    """
    least = config.prompt_length
    found: dict[str, None] = {}
    for line in text.split("\n"):
        end = line.find(" ", least)
        if 0 < end <= len(line) - least and end <= 2 * least and not line.endswith(":"):
            found[line[:end]] = None
    if len(found) < needed:
        raise UsageError(
            f"--num_prompts, --num_evaluated: the corpus has {len(found)} prompts of "
            f"--prompt_length={least}, fewer than {needed}"
        )
    return list(found)


def drawn_prompts(prompts: list[str], number: int, rng: np.random.Generator) -> list[str]:
    """Draws distinct prompts."""
    return [prompts[i] for i in rng.choice(len(prompts), number, replace=False)]
