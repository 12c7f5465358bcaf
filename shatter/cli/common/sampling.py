"""Responses sampled from a pretrained model, and their tokens as text."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from shatter import documents, models
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn; the fields are arguments of `shatter.documents.sample`."""

    num_samples: int
    max_length: int
    eos: tuple[int, ...]
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@functools.cache
def make_sampler(
    config: models.TransformerConfig, sampling: Sampling
) -> Callable[..., documents.Samples]:
    """Compiles the sampler of a model once.

    Args:
      config: of the transformer.
      sampling: how responses are drawn.

    Returns:
      `(params, keys[B], tokens[B, P], valid[B, P]) -> samples[B, N]`. Every prompt has a key of its
      own, so that its responses do not depend on the other prompts of the batch.
    """

    def one_prompt(params: Params, key: Key, tokens: Array, valid: Array) -> documents.Samples:
        return documents.sample(
            models.transformer(config), params, key, tokens, valid=valid, **vars(sampling)
        )

    return jax.jit(
        jax.vmap(one_prompt, in_axes=(None, 0, 0, 0)), compiler_options=compiler_options()
    )


def response_text(
    decode: Callable[[list[int]], str], prompt: list[int], response: list[int]
) -> str:
    """Returns the text of a response with the white space before it, which decoding may drop.

    Args:
      decode: the tokenizer's.
      prompt: the tokens of the prompt.
      response: those of the response, without the token that ends it.
    """
    start, whole = decode(prompt), decode([*prompt, *response])
    return whole.removeprefix(start) if whole.startswith(start) else decode(response)
