"""The logits above a cut below the last block's mlp_out, shared by all adapters of that projection.

With the frozen model's last residual stream x, what enters its mlp_out g, an adapter a, b on
mlp_out, the final norm's scale s, inverse deviation 1 / d, offset o and centring P (the identity
for RMS norms), and the vocabulary's matrix W,

    logits = W (s P (x + g a b) / d + o) = (W s P x + (g a) (W s P b)) / d + W o.

No product with W is of a member and a token: W s P x is common to all members of an ensemble, and
W s P b has only `rank` rows. The identity is exact, and our own.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter.factored import FactoredLogits, Rows, multiply
from shatter.models.transformer import forward, vocabulary_columns
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array, Params


class _Normed(NamedTuple):
    """The output of the final norm, `(shared + low @ high) * inverse * scale + offset`, in parts.

    Attributes:
      shared: `[N, D]`, P x, which no adapter changes.
      low_high: g a `[N, rank]` and P b `[rank, D]`; None without an adapter.
      inverse: `[N, 1]`, 1 / d.
      scale: `[1, D]`.
      offset: `[1, D]`; None = 0.
    """

    shared: Array
    low_high: tuple[Array, Array] | None
    inverse: Array
    scale: Array
    offset: Array | None


def stream_and_activations(
    config: TransformerConfig, params: Params, inputs: Array, valid: Array | None
) -> Array:
    """Runs the last block, and keeps what an adapter on its mlp_out needs.

    Args:
      config: the configuration of the transformer.
      params: its parameters, of the last block alone.
      inputs: what enters the block, `[..., T, D]`, or the tokens `[..., T]` if it is the only one.
      valid: bool `[..., T]`, false on padding; None = all true.

    Returns:
      `[..., T, D + H]`, x beside g.
    """
    last = dataclasses.replace(config, num_layers=1)
    outputs = forward(last, params, inputs, valid, with_activations=True)
    assert outputs.activations is not None
    return jnp.concatenate([outputs.hidden, outputs.activations], axis=-1)


def logits_above(config: TransformerConfig, params: Params, hidden: Array) -> Array:
    """Computes the logits from what `stream_and_activations` kept.

    Args:
      config: the configuration of the transformer.
      params: its parameters, of the last block alone, with or without an adapter on mlp_out.
      hidden: `[..., T, D + H]`.

    Returns:
      `[..., T, V]`.

    Raises:
      ValueError: if another projection has adapters.
    """
    return multiply(*factored_above(config, params, hidden))


def factored_above(config: TransformerConfig, params: Params, hidden: Array) -> FactoredLogits:
    """Computes the logits from the same as `logits_above`, as factors.

    Only `Rows.features` and the vocabulary are factors of a product with W. They are common to all
    members that are vmapped.

    Args:
      config: the configuration of the transformer.
      params: as in `logits_above`.
      hidden: `[..., T, D + H]`.

    Returns:
      The factors of `[..., T, V]`.

    Raises:
      ValueError: if another projection has adapters.
    """
    normed = _normed(config, params, hidden)
    dtype = jnp.dtype(config.dtype or normed.shared.dtype)
    columns = vocabulary_columns(config, params, normed.shared.dtype)
    table, bias = columns._replace(bias=None), columns.bias
    times_vocabulary = lambda rows: multiply(Rows(rows.astype(dtype)), table)
    low = high = None
    if normed.low_high is not None:
        low, high = normed.low_high
        high = times_vocabulary(high * normed.scale)
    if normed.offset is not None:
        of_offset = times_vocabulary(normed.offset)[0]
        bias = of_offset if bias is None else of_offset + bias
    rows = Rows((normed.shared * normed.scale).astype(dtype), low, normed.inverse)
    rows = jax.tree.map(lambda leaf: leaf.reshape(*hidden.shape[:-1], -1), rows)
    return FactoredLogits(rows, table._replace(high=high, bias=bias))


def features_above(config: TransformerConfig, params: Params, hidden: Array) -> Array:
    """Computes the features, the output of the final norm, from the same as `logits_above`.

    Args:
      config: the configuration of the transformer.
      params: as in `logits_above`.
      hidden: `[..., T, D + H]`.

    Returns:
      `[..., T, D]`.

    Raises:
      ValueError: if another projection has adapters.
    """
    normed = _normed(config, params, hidden)
    stream = _add(normed.shared, normed.low_high)
    features = stream * normed.inverse * normed.scale
    if normed.offset is not None:
        features += normed.offset
    return features.astype(config.dtype or features.dtype).reshape(*hidden.shape[:-1], -1)


def _normed(config: TransformerConfig, params: Params, hidden: Array) -> _Normed:
    x, activations = jnp.split(hidden.reshape(-1, hidden.shape[-1]), [config.width], axis=-1)
    shared, pair = _centred(config, x), _adapter(params)
    low_high = None if pair is None else (activations @ pair["a"], _centred(config, pair["b"]))
    mean_square = jnp.mean(jnp.square(_add(shared, low_high)), axis=-1, keepdims=True)
    norm = params["params"]["final_norm"]
    scale = norm["scale"][None]
    return _Normed(
        shared=shared,
        low_high=low_high,
        inverse=jax.lax.rsqrt(mean_square + config.norm_epsilon),
        scale=scale,
        offset=norm["bias"][None] if "bias" in norm else None,
    )


def _centred(config: TransformerConfig, rows: Array) -> Array:
    """Applies P to rows `[..., D]`, in float32 or wider."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return rows - jnp.mean(rows, axis=-1, keepdims=True) if config.norm == "layer" else rows


def _add(shared: Array, low_high: tuple[Array, Array] | None) -> Array:
    """Returns P (x + g a b)."""
    return shared if low_high is None else shared + low_high[0] @ low_high[1]


def _adapter(params: Params) -> dict[str, Array] | None:
    """Returns the adapter on mlp_out as `a [H, rank]` and `b [rank, D]`, if there is one.

    Raises:
      ValueError: if there are others, or of more blocks.
    """
    if "lora" not in params:
        return None
    blocks = params["lora"]["blocks"]
    targets = [target for projection in blocks.values() for target in projection["adapters"]]
    num_blocks = jax.tree.leaves(blocks)[0].shape[0]
    if targets != ["mlp_out"] or num_blocks != 1:
        raise ValueError(
            f"above the cut at the last block's mlp_out, that alone may have adapters, found "
            f"{', '.join(targets)} of {num_blocks} blocks: cut at a lower layer, or adapt mlp_out "
            "alone"
        )
    return jax.tree.map(lambda leaf: leaf[0], blocks["mlp_out"]["adapters"]["mlp_out"])
