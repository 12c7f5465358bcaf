"""The law that a response's next token is drawn from: temperature, top-k, top-p, min-p."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.documents.scoring import finite_logits
from shatter.numerics import LOG_ZERO, assert_positive
from shatter.types import Array


def sampling_logits(
    logits: Array,
    *,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    min_p: float | Array | None = None,
) -> Array:
    """Logits of the law drawn from: tempered, then filtered by top-k, top-p, min-p in this order.

    With `x = logits / temperature` and, at every filter, `p = softmax(x)` of what those before it
    left, a token v stays where
    `top_k`: `x_v >=` the k-th largest of x (all that tie with it stay);
    `top_p`: v is in the smallest set of the likeliest tokens whose mass reaches `top_p` (of those
    that tie at its edge the last ones in the vocabulary are in it);
    `min_p`: `p_v >= min_p max p`.
    The likeliest token always stays. `top_k=1` is greedy: the point mass on the argmax, the first
    one of those that tie. Log-probs of documents under the law are
    `log_prob(sampling_logits(logits, ...), tokens, mask)`.

    Source: Fan et al., https://arxiv.org/abs/1805.04833 (top-k); Holtzman et al.,
    https://arxiv.org/abs/1904.09751 (top-p); Nguyen et al., https://arxiv.org/abs/2407.01082
    (min-p); order and ties as in transformers.

    Args:
      logits: `[..., V]`, of any float type.
      temperature: `[]`, divides the logits, > 0.
      top_k: number of tokens that stay, >= 1; None = all.
      top_p: `[]`, the mass that stays, > 0; None or 1 = all.
      min_p: `[]`, the least share of the largest probability, 0 <= min_p <= 1; None or 0 = all.

    Returns:
      `[..., V]`, in float32 at least; -1e30 where a token was filtered. Not normalised.

    Raises:
      AssertionError: if the logits are not floating.
      ValueError: if a hyper-parameter is out of its range; traced ones raise under checkify.
    """
    chex.assert_type(logits, float)
    assert_positive(temperature=temperature)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1, found {top_k}; None keeps all tokens")
    _check_share("top_p", top_p, zero=False)
    _check_share("min_p", min_p, zero=True)
    logits = finite_logits(logits) / temperature
    if top_k == 1:  # no other filter could remove the one that is left
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, logits, LOG_ZERO)
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, LOG_ZERO)
    if top_p is not None:
        logits = jnp.where(_in_nucleus(logits, top_p), logits, LOG_ZERO)
    if min_p is not None:
        share = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        logits = jnp.where(share >= min_p, logits, LOG_ZERO)
    return logits


def _in_nucleus(logits: Array, top_p: float | Array) -> Array:
    """Bool `[..., V]`, true on the smallest set whose mass reaches `top_p`."""
    vocab_size = logits.shape[-1]
    ascending = jnp.sort(logits, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(ascending), axis=-1)  # mass up to here, from the least likely
    num_out = jnp.sum((below <= 1 - top_p) & (top_p < 1), axis=-1, keepdims=True)
    num_out = jnp.minimum(num_out, vocab_size - 1)
    edge = jnp.take_along_axis(ascending, num_out, axis=-1)
    ties = logits == edge
    ties_out = num_out - jnp.sum(logits < edge, axis=-1, keepdims=True)
    return (logits > edge) | (ties & (jnp.cumsum(ties, axis=-1) > ties_out))


def _check_share(name: str, share: float | Array | None, *, zero: bool) -> None:
    """Refuses what is not between 0 and 1; 0 itself unless `zero`."""
    if share is None:
        return
    chex.assert_rank(share, 0)
    expected = f"{name} must be {'at least' if zero else 'above'} 0 and at most 1, found"
    if isinstance(share, jax.core.Tracer):
        inside = (share >= 0 if zero else share > 0) & (share <= 1)
        checkify.debug_check(inside, f"{expected} {{share}}", share=share)
    elif not (np.asarray(share) >= 0 if zero else np.asarray(share) > 0) or not share <= 1:
        raise ValueError(f"{expected} {share}")
