"""The law that a response's next token is drawn from: temperature, top-k, top-p, min-p."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from shatter.numerics import LOG_ZERO, assert_positive, finite_logs
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
    logits = finite_logs(logits) / temperature
    if top_k == 1:  # no other filter could remove the one that is left
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, logits, LOG_ZERO)
    if top_k is not None and top_k < logits.shape[-1]:
        least = _edge(logits, jnp.ones_like(logits), top_k)
        logits = jnp.where(logits >= least, logits, LOG_ZERO)
    if top_p is not None:
        logits = jnp.where(_in_nucleus(logits, top_p), logits, LOG_ZERO)
    if min_p is not None:
        share = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        logits = jnp.where(share >= min_p, logits, LOG_ZERO)
    return logits


def _in_nucleus(logits: Array, top_p: float | Array) -> Array:
    """Bool `[..., V]`, true on the smallest set whose mass reaches `top_p`."""
    probs = jax.nn.softmax(logits)
    edge = _edge(logits, probs, top_p)
    above, ties = logits > edge, logits == edge
    # Of those that tie, those with less than top_p before them, the last in the vocabulary first.
    tied = jnp.where(ties, probs, 0.0)
    before = jnp.sum(jnp.where(above, probs, 0.0), axis=-1, keepdims=True)
    before = before + jnp.cumsum(tied[..., ::-1], axis=-1)[..., ::-1] - tied
    return above | (ties & (before < top_p)) | (top_p >= 1)


def _edge(logits: Array, weights: Array, target: float | Array) -> Array:
    """The largest t with `sum_v weights_v [logits_v >= t] >= target`, `[..., 1]`.

    Found bit by bit in the integers that order as floats do: no sort, which takes ten times as long
    on a CPU. The least logit where even all of the weights are below the target.
    """
    bits = 8 * logits.dtype.itemsize
    unsigned = jnp.dtype(f"uint{bits}")
    sign = unsigned.type(1 << (bits - 1))
    raw = jax.lax.bitcast_convert_type(logits, unsigned)
    codes = jnp.where(raw >= sign, ~raw, raw | sign)

    def lower(i: Array, edge: Array) -> Array:
        higher = edge | (sign >> i.astype(unsigned))
        reached = jnp.sum(jnp.where(codes >= higher, weights, 0.0), axis=-1, keepdims=True)
        return jnp.where(reached >= target, higher, edge)

    edge = jax.lax.fori_loop(0, bits, lower, jnp.zeros_like(codes[..., :1]))
    edge = jnp.maximum(edge, jnp.min(codes, axis=-1, keepdims=True))
    raw = jnp.where(edge >= sign, edge ^ sign, ~edge)
    return jax.lax.bitcast_convert_type(raw, logits.dtype)


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
