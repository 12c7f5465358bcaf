"""The exact law of a small language model: every document once."""

import itertools

import jax
import jax.numpy as jnp

from shatter.documents.scoring import log_prob, response_mask
from shatter.models import LanguageModel
from shatter.numerics import assert_positive, at_least_float32
from shatter.types import Array, Params

_MAX_DOCUMENTS = 1_000_000


def enumerate_documents(
    *, vocab_size: int, max_length: int, prompt: tuple[int, ...] = (0,), eos: int | None = None
) -> tuple[Array, Array]:
    """Every document that can follow a prompt, once, in lexicographic order of the response.

    Args:
      vocab_size: V, number of tokens.
      max_length: largest number of response tokens.
      prompt: the prompt's tokens, at least one.
      eos: the token that ends a response; None = every response has `max_length` tokens.

    Returns:
      tokens int `[D, P + max_length]`, after EOS EOS again, and mask bool `[D, P + max_length]`,
      true on the response's tokens, EOS included. `sum_d exp(log_prob_d) = 1` under any language
      model.

    Raises:
      ValueError: if a size is not positive or there are over a million documents.
    """
    if vocab_size < 1 or max_length < 1 or not prompt:
        raise ValueError(
            "enumerate_documents expects vocab_size >= 1, max_length >= 1 and a prompt token, "
            f"found {vocab_size}, {max_length} and {len(prompt)} prompt tokens"
        )
    if vocab_size**max_length > _MAX_DOCUMENTS:
        raise ValueError(
            f"{vocab_size} ** {max_length} documents are over the limit of {_MAX_DOCUMENTS}: lower "
            "vocab_size or max_length, or sample"
        )
    rows = [
        (*prompt, *response)
        for response in itertools.product(range(vocab_size), repeat=max_length)
        if eos is None or _ends_once(response, eos)
    ]
    tokens = jnp.asarray(rows, int)
    return tokens, response_mask(tokens, prompt_length=len(prompt), eos=eos)


def document_log_probs(lm: LanguageModel, params: Params, tokens: Array, mask: Array) -> Array:
    """Log-prob of every document under a language model.

    Args:
      lm: the language model.
      params: its parameters.
      tokens: int `[..., T]`, for example of `enumerate_documents`.
      mask: bool `[..., T]`, true on the response's tokens.

    Returns:
      `[...]`, nats.
    """
    return log_prob(lm.apply(params, tokens), tokens, mask)


def sequence_tempered(log_probs: Array, temperature: float | Array) -> Array:
    """The sequence-tempered law `pi(x)^(1 / temperature) / Z` over an enumerated space.

    It is the soft-optimal policy for the reward log pi at that temperature; tempering every token's
    law is another one.

    Source: our reading of Xu et al., https://arxiv.org/abs/2305.11455.

    Args:
      log_probs: `[..., D]`, log pi of every document, nats.
      temperature: > 0.

    Returns:
      `[..., D]`, nats, normalised.

    Raises:
      ValueError: if the temperature is not above 0.
    """
    assert_positive(temperature=temperature)
    return jax.nn.log_softmax(at_least_float32(log_probs) / temperature, axis=-1)


def _ends_once(response: tuple[int, ...], eos: int) -> bool:
    """Whether what follows the first EOS is EOS: the one form of that document."""
    if eos not in response:
        return True
    end = response.index(eos)
    return all(token == eos for token in response[end:])
