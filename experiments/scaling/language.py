"""A model with its texts: a member of the family or a pretrained folder, behind one tuple."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.sources import model_folder
from experiments.scaling.config import SIZES, Config
from experiments.scaling.corpus import Corpus
from shatter import documents, models
from shatter.cli.common.frozen import load_frozen
from shatter.cli.common.sampling import response_text
from shatter.types import Params


class Language(NamedTuple):
    """A language model that reads and writes texts.

    Attributes:
      name: of the model, for files and tables.
      lm: the model.
      width: the number of its features.
      encode: a text as tokens.
      decode: tokens as a text.
      start: the tokens before every text.
      ends: the tokens that end a line; the first is what ends one that is trained on.
      context: tokens that the model can read.
    """

    name: str
    lm: models.LanguageModel
    width: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    start: tuple[int, ...]
    ends: tuple[int, ...]
    context: int


class Documents(NamedTuple):
    """Prompts with responses as tokens: prompts are padded on the left, responses on the right.

    Attributes:
      tokens: int `[N, P + T]`.
      mask: bool `[N, P + T]`, true on the response's tokens, and on what ends its line.
      valid: bool `[N, P + T]`, false on the padding of prompts.
    """

    tokens: Any
    mask: Any
    valid: Any


def family_language(config: Config, size: str, corpus: Corpus) -> Language:
    """Returns a model of the family, whose tokens are characters."""
    shape = SIZES[size]
    lm = models.transformer(
        models.TransformerConfig(
            vocab_size=len(corpus.alphabet),
            max_length=config.context,
            width=shape.width,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            rope=models.Rope(),  # no parameters a position, which small models would consist of
            tied=True,
        )
    )
    places = {character: place for place, character in enumerate(corpus.alphabet)}
    newline = (places["\n"],)
    return Language(
        size,
        lm,
        shape.width,
        lambda text: [places[character] for character in text],
        lambda tokens: "".join(corpus.alphabet[token] for token in tokens),
        newline,
        newline,
        config.context,
    )


def pretrained_language(config: Config, name: str) -> tuple[Language, Params]:
    """Opens a pretrained model; its lines end with a new line or where it ends a document.

    Raises:
      UsageError: if it cannot be opened; the message says what to pass.
    """
    sizes, params, tokenizer = load_frozen(model_folder(name, config.data_dir or None))
    ends = models.end_tokens(sizes, tokenizer)
    newline = tokenizer.encode("a\n")[len(tokenizer.encode("a")) :]
    if len(newline) == 1:
        ends = (newline[0], *ends)
    start = () if tokenizer.bos is None else (tokenizer.bos,)
    language = Language(
        name.rstrip("/").split("/")[-1],
        models.transformer(sizes),
        sizes.width,
        tokenizer.encode,
        tokenizer.decode,
        start or ends[-1:],
        tuple(dict.fromkeys(ends)),
        sizes.max_length,
    )
    return language, jax.tree.map(jax.numpy.asarray, params)


def encode_prompts(
    language: Language, prompts: Sequence[str], *, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts as tokens `[N, P]`, padded on the left, and what is no padding.

    Args:
      language: the model.
      prompts: N texts.
      length: P; None = the tokens of the longest.
    """
    rows = [[*language.start, *language.encode(prompt)] for prompt in prompts]
    length = length or max(map(len, rows))
    return documents.pad_prompts(rows, buckets=(length,), fill=language.ends[0])


def response_tokens(language: Language, prompt: str, response: str, *, ends: bool) -> list[int]:
    """Returns a response as tokens, as they follow those of the prompt alone.

    Args:
      language: the model.
      prompt: the prompt.
      response: the response.
      ends: whether the line ends after it.
    """
    before, whole = language.encode(prompt), language.encode(prompt + response)
    is_beginning = whole[: len(before)] == before
    after = whole[len(before) :] if is_beginning else language.encode(response)
    return [*after, *(language.ends[:1] if ends else ())]


def encode_documents(
    language: Language, texts: Sequence[tuple[str, str]], *, most: int, max_length: int
) -> Documents:
    """Encodes prompts with responses.

    Args:
      language: the model.
      texts: N prompts, each with its response.
      most: characters that are read of a response; a shorter one has ended its line.
      max_length: T, the tokens of a response, of which more are cut.

    Returns:
      The documents.
    """
    tokens, valid = encode_prompts(language, [prompt for prompt, _ in texts])
    said = np.full((len(texts), max_length), language.ends[0], np.int32)
    mask = np.zeros(said.shape, bool)
    for row, filled, (prompt, response) in zip(said, mask, texts, strict=True):
        ids = response_tokens(language, prompt, response, ends=len(response) < most)[:max_length]
        row[: len(ids)], filled[: len(ids)] = ids, True
    return Documents(
        np.concatenate([tokens, said], axis=1),
        np.concatenate([np.zeros_like(valid), mask], axis=1),
        np.concatenate([valid, np.ones_like(mask)], axis=1),
    )


def read_responses(
    language: Language, prompts: Sequence[str], tokens: np.ndarray, mask: np.ndarray, *, most: int
) -> list[str]:
    """Returns what a model has said, up to the end of the line and `most` characters.

    Args:
      language: the model.
      prompts: N prompts.
      tokens: int `[N, L]`, documents; what stands before a response is not read.
      mask: bool `[N, L]`, true on the response.
      most: characters of a response.
    """
    texts = []
    for prompt, row, said in zip(prompts, tokens, mask, strict=True):
        before = language.encode(prompt)
        after = [int(token) for token in row[said] if token not in language.ends]
        texts.append(response_text(language.decode, before, after).split("\n")[0][:most])
    return texts
