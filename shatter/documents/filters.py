"""The law from which the next token is drawn: temperature, top-k, top-p and min-p."""

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
    """Returns the logits of the law that tokens are drawn from.

    The logits are divided by the temperature, then filtered by top-k, top-p and min-p in this
    order. Let `x = logits / temperature`, and at every filter let `p = softmax(x)` over the tokens
    that are left. A token v stays if
    `top_k`: `x_v >=` the k-th largest of x (tokens that tie with it stay);
    `top_p`: v is in the smallest set of likeliest tokens with a mass of at least `top_p` (among
    tokens that tie at its edge, the last ones in the vocabulary are in the set);
    `min_p`: `p_v >= min_p max p`.
    The likeliest token always stays. `top_k=1` is greedy: a point mass on the argmax, on the first
    one if several tie. Log-probs of documents under the law are
    `log_prob(sampling_logits(logits, ...), tokens, mask)`.

    Source: Fan et al., https://arxiv.org/abs/1805.04833 (top-k); Holtzman et al.,
    https://arxiv.org/abs/1904.09751 (top-p); Nguyen et al., https://arxiv.org/abs/2407.01082
    (min-p); order and ties as in transformers.

    Args:
      logits: `[..., V]`, of any float type.
      temperature: `[]`, divides the logits, > 0.
      top_k: number of tokens that stay, >= 1; None = all.
      top_p: `[]`, the mass that stays, 0 < top_p <= 1; None or 1 = all.
      min_p: `[]`, the smallest share of the largest probability with which a token stays,
        0 <= min_p <= 1; None or 0 = all.

    Returns:
      `[..., V]`, in float32 at least; -1e30 where a token was filtered. Not normalised.

    Raises:
      AssertionError: if the logits are not floating.
      ValueError: if a hyper-parameter is out of its range; traced ones only raise under checkify.
    """
    chex.assert_type(logits, float)
    assert_positive(temperature=temperature)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1, found {top_k}; None keeps all tokens")
    _check_share("top_p", top_p, zero=False)
    _check_share("min_p", min_p, zero=True)
    logits = finite_logs(logits) / temperature
    if top_k == 1:  # the other filters keep the likeliest token, so they need not run
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
    """Returns which tokens are in the smallest set with mass `top_p`, bool `[..., V]`."""
    probs = jax.nn.softmax(logits)
    edge = _edge(logits, probs, top_p)
    above, ties = logits > edge, logits == edge
    # Tokens that tie at the edge are added from the end of the vocabulary while the mass before
    # them is below top_p.
    tied = jnp.where(ties, probs, 0.0)
    before = jnp.sum(jnp.where(above, probs, 0.0), axis=-1, keepdims=True)
    before = before + jnp.cumsum(tied[..., ::-1], axis=-1)[..., ::-1] - tied
    return above | (ties & (before < top_p)) | (top_p >= 1)


def _edge(logits: Array, weights: Array, target: float | Array) -> Array:
    """Returns the largest t with `sum_v weights_v [logits_v >= t] >= target`, `[..., 1]`.

    It is the smallest logit where all weights together are below the target. The search sets one
    bit after the other of an integer code that orders as the floats do, because a sort takes ten
    times as long on a CPU.
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
    """Raises a ValueError if a share is not between 0 and 1; 0 is allowed only if `zero`."""
    if share is None:
        return
    chex.assert_rank(share, 0)
    expected = f"{name} must be {'at least' if zero else 'above'} 0 and at most 1, found"
    if isinstance(share, jax.core.Tracer):
        inside = (share >= 0 if zero else share > 0) & (share <= 1)
        checkify.debug_check(inside, f"{expected} {{share}}", share=share)
    elif not (np.asarray(share) >= 0 if zero else np.asarray(share) > 0) or not share <= 1:
        raise ValueError(f"{expected} {share}")
