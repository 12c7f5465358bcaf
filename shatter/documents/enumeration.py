"""The exact law of a small language model over all documents."""

import itertools

import jax
import jax.numpy as jnp

from shatter.documents.scoring import log_prob, response_mask
from shatter.models import LanguageModel, lazy_logits
from shatter.numerics import assert_positive, at_least_float32
from shatter.types import Array, Params

_MAX_DOCUMENTS = 1_000_000


def enumerate_documents(
    *, vocab_size: int, max_length: int, prompt: tuple[int, ...] = (0,), eos: int | None = None
) -> tuple[Array, Array]:
    """Returns every document that can follow a prompt, in lexicographic order of the response.

    Args:
      vocab_size: V, number of tokens.
      max_length: largest number of response tokens.
      prompt: the prompt's tokens, at least one.
      eos: the token that ends a response; None = every response has `max_length` tokens.

    Returns:
      The tokens, int `[D, P + max_length]`, filled with EOS after the first EOS of the response,
      and the mask, bool `[D, P + max_length]`, true on the response's tokens, EOS included. The
      probabilities of these documents sum to 1 under any language model.

    Raises:
      ValueError: if a size is not positive, or there are more than a million documents.
    """
    if vocab_size < 1 or max_length < 1 or not prompt:
        raise ValueError(
            "enumerate_documents expects vocab_size >= 1, max_length >= 1 and a prompt token, "
            f"found {vocab_size}, {max_length} and {len(prompt)} prompt tokens"
        )
    if vocab_size**max_length > _MAX_DOCUMENTS:
        raise ValueError(
            f"expected at most {_MAX_DOCUMENTS} documents to enumerate, found vocab_size ** "
            f"max_length = {vocab_size} ** {max_length}: lower vocab_size or max_length, or draw "
            "samples with shatter.documents.sample"
        )
    rows = [
        (*prompt, *response)
        for response in itertools.product(range(vocab_size), repeat=max_length)
        if eos is None or _ends_once(response, eos)
    ]
    tokens = jnp.asarray(rows, int)
    return tokens, response_mask(tokens, prompt_length=len(prompt), eos=eos)


def document_log_probs(
    lm: LanguageModel, params: Params, tokens: Array, mask: Array, *, valid: Array | None = None
) -> Array:
    """Returns the log-prob of the response of every document under a language model.

    Where tokens times vocabulary is large, logits are never held (`shatter.models.lazy_logits`).

    Args:
      lm: the language model.
      params: its parameters.
      tokens: int `[..., T]`, for example from `enumerate_documents`.
      mask: bool `[..., T]`, true on the response's tokens.
      valid: bool `[..., T]`, false on padding; None = all true.

    Returns:
      `[...]`, nats.
    """
    return log_prob(lazy_logits(lm, params, tokens, valid=valid), tokens, mask)


def sequence_tempered(log_probs: Array, temperature: float | Array) -> Array:
    """Returns the sequence-tempered law `pi(x)^(1 / temperature) / Z` over an enumerated space.

    It is the soft-optimal law for the reward log pi at that temperature. Sampling every token at
    that temperature gives another law.

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
    """Returns whether only EOS follows the first EOS, so that each document occurs once."""
    if eos not in response:
        return True
    end = response.index(eos)
    return all(token == eos for token in response[end:])
