"""Attention: the cache of keys and values, and the softmax, plain or fused."""

import jax
import jax.numpy as jnp

from shatter.numerics import LOG_ZERO
from shatter.types import Array


def append(
    cache: Array | None, new: Array, layer: Array, index: Array
) -> tuple[Array | None, Array]:
    """Writes new keys or values `[B, t, heads, size]` into the cache.

    Returns:
      The cache of all layers, and this layer's part of it, `[B, heads, slots, size]`. Without a
      cache, in training, that part is the new keys or values alone.
    """
    new = jnp.swapaxes(new, 1, 2)
    if cache is None:
        return None, new
    start = (layer, 0, 0, index, 0)
    cache = jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), start)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)


def plain_attention(query: Array, keys: Array, values: Array, attend: Array, divisor: int) -> Array:
    """Computes softmax(query . keys / sqrt(divisor)) . values, in any type.

    Consecutive heads of queries share a head of keys. The softmax is computed in float32 or wider.
    `jax.nn.dot_product_attention` is not used here because it computes the softmax in float32 at
    most, which would lose precision when the model runs in float64.

    Args:
      query: `[B, t, heads, size]`.
      keys: `[B, heads of keys, slots, size]`.
      values: like the keys.
      attend: bool `[B, t, slots]`, which slots a token attends to.
      divisor: the products of queries and keys are divided by its square root.

    Returns:
      `[B, t, heads, size]`.
    """
    batch, length, heads, size = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, size)
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    scores = jnp.einsum("btkgs,bkus->bkgtu", grouped, keys, preferred_element_type=dtype)
    scores = jnp.where(attend[:, None, None], scores / divisor**0.5, LOG_ZERO)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bkgtu,bkus->btkgs", weights, values).reshape(batch, length, heads, size)


def fused_attention(query: Array, keys: Array, values: Array, attend: Array, divisor: int) -> Array:
    """Computes the same by cuDNN's fused kernel, which never holds the scores of all heads.

    The mask is given to every head because the kernel's rule for `jax.vmap` expects it so.

    Args:
      query: `[B, t, heads, size]`, of a half-precision type.
      keys: as in `plain_attention`.
      values: likewise.
      attend: likewise.
      divisor: likewise.

    Returns:
      `[B, t, heads, size]`.

    Raises:
      RuntimeError: if there is no NVIDIA GPU with cuDNN.
      ValueError: if the kernel does not take the type or the sizes.
    """
    batch, length, heads, _ = query.shape
    keys, values = (jnp.swapaxes(x, 1, 2).astype(query.dtype) for x in (keys, values))
    mask = jnp.broadcast_to(attend[:, None], (batch, heads, length, attend.shape[-1]))
    return jax.nn.dot_product_attention(
        query, keys, values, mask=mask, scale=divisor**-0.5, implementation="cudnn"
    )
