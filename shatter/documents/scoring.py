"""Log-probs of tokens and of documents, and the masks that select responses."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.factored import FactoredLogits, target_log_probs
from shatter.numerics import finite_logs, masked_sum
from shatter.types import Array


def token_log_probs(logits: Array | FactoredLogits, tokens: Array) -> Array:
    """Returns the log-prob of every token given the tokens before it.

    `out_t = logits[t - 1, token_t] - log sum_v exp logits[t - 1, v]`, `out_0 = 0`, in float32 at
    least. An impossible token (a logit of -inf) gets about -1e30 instead of -inf, so that sums and
    gradients stay finite; `exp` of it is 0.

    Args:
      logits: `[..., T, V]`, or their factors; entry t is the law of token t + 1 given tokens 0..t.
      tokens: int `[..., T]`.

    Returns:
      `[..., T]`, nats.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    _check(logits, tokens)
    targets = jnp.clip(tokens[..., 1:], 0, logits.shape[-1] - 1)  # padding may hold any id
    if isinstance(logits, FactoredLogits):
        log_probs = target_log_probs(logits.map_rows(lambda leaf: leaf[..., :-1, :]), targets)
        checkify.debug_check(~jnp.any(jnp.isnan(log_probs)), "logits hold a NaN")
    else:
        checkify.debug_check(~jnp.any(jnp.isnan(logits)), "logits hold a NaN")
        logits = finite_logs(logits[..., :-1, :])
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    first = jnp.zeros_like(tokens[..., :1], log_probs.dtype)
    return jnp.concatenate([first, log_probs], axis=-1)


def log_prob(logits: Array | FactoredLogits, tokens: Array, mask: Array) -> Array:
    """Returns the log-prob of the response of every document, summed over its tokens.

    `log pi(x) = sum_t mask_t log pi(x_t | x_<t)`. It is also the return of the document where the
    language model is its own reward, see `interface`.

    Source: our reading of Xu et al., https://arxiv.org/abs/2305.11455.

    Args:
      logits: `[..., T, V]`, or their factors (`shatter.models.lazy_logits`); entry t is the law of
        token t + 1 given tokens 0..t.
      tokens: int `[..., T]`.
      mask: bool `[..., T]`, true on the response's tokens, EOS included.

    Returns:
      `[...]`, nats; 0 where the mask is empty.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    _check(logits, tokens)
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([tokens, mask])
    checkify.debug_check(
        jnp.all(jnp.any(mask, axis=-1)),
        f"the response of document {{row}} is empty: its mask is false on all {tokens.shape[-1]} "
        "tokens",
        row=jnp.argmin(jnp.any(mask, axis=-1)),
    )
    in_range = ~mask | ((tokens >= 0) & (tokens < logits.shape[-1]))
    checkify.debug_check(
        jnp.all(in_range),
        f"a token of document {{row}} is out of range: expected 0 <= token < {logits.shape[-1]}, "
        "found between {low} and {high}",
        row=jnp.argmin(jnp.all(in_range, axis=-1)),
        low=jnp.min(jnp.where(mask, tokens, 0)),
        high=jnp.max(jnp.where(mask, tokens, 0)),
    )
    # The logits are masked as well as the sum, because a softmax that is NaN outside the mask would
    # give a gradient of 0 times NaN.
    counts = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
    keep = lambda leaf: jnp.where(counts[..., None], leaf, 0.0)
    logits = logits.map_rows(keep) if isinstance(logits, FactoredLogits) else keep(logits)
    return masked_sum(token_log_probs(logits, tokens), mask)


def _check(logits: Array | FactoredLogits, tokens: Array) -> None:
    """Raises AssertionError if the shapes or types of logits and tokens do not fit."""
    chex.assert_type(logits.rows.features if isinstance(logits, FactoredLogits) else logits, float)
    chex.assert_type(tokens, int)
    chex.assert_shape(tokens, logits.shape[:-1])


def response_mask(tokens: Array, *, prompt_length: int, eos: int | tuple[int, ...] | None) -> Array:
    """Returns the mask of responses that end with their first EOS or at the last token.

    Args:
      tokens: int `[..., T]`, prompt and response.
      prompt_length: number of prompt tokens; an EOS in the prompt does not end the response.
      eos: the token that ends a response, or several of them; None or () = responses end at the
        last token.

    Returns:
      bool `[..., T]`, true on the response's tokens, EOS included.
    """
    is_response = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) >= prompt_length, tokens.shape)
    ends = is_response & is_eos(tokens, eos_tuple(eos))
    return is_response & (jnp.cumsum(ends, axis=-1) - ends == 0)


def eos_tuple(eos: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the tokens that end a response as a tuple, empty for responses of fixed length."""
    if eos is None:
        return ()
    return eos if isinstance(eos, tuple) else (eos,)


def is_eos(tokens: Array, ends: tuple[int, ...]) -> Array:
    """Returns which tokens are one of `ends`, bool in the shape of `tokens`."""
    is_end = jnp.zeros(tokens.shape, bool)
    for end in ends:
        is_end = is_end | (tokens == end)
    return is_end
