"""The logits above a cut below the last block's mlp_out, shared by all adapters of that projection.

With the frozen model's last residual stream x, what enters its mlp_out g, an adapter a, b on
mlp_out, the final norm's scale s, inverse deviation 1 / d, offset o and centring P (the identity
for RMS norms), and the vocabulary's matrix W,

    logits = W (s P (x + g a b) / d + o) = (W s P x + (g a) (W s P b)) / d + W o.

No product with W is of a member and a token: W s P x is common to all members of an ensemble, and
W s P b has only `rank` rows. The identity is exact, and our own.

With a norm behind mlp_out, of scale t and inverse deviations r of the adapted output m + g a b and
r' of the frozen m, the stream of a member is x + (r - r') t P m + (r g a) (t P b). The products
with the vocabulary are then of x and t P m, both common to all members, and of t P b.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter.factored import Columns, FactoredLogits, Rows, multiply
from shatter.models.transformer import forward, vocabulary_columns
from shatter.models.transformer_config import TransformerConfig, select_layers
from shatter.types import Array, Params


class _Stream(NamedTuple):
    """P applied to the residual stream, in parts: `shared + factor * branch + low @ high`.

    Attributes:
      shared: `[N, D]`, P x, which no adapter changes.
      low_high: g a `[N, rank]` and P b `[rank, D]`; None without an adapter. With a norm behind
        mlp_out, r g a and P t P b.
      branch: r - r' `[N, 1]` and P t P m `[N, D]`; None without an adapter or that norm.
    """

    shared: Array
    low_high: tuple[Array, Array] | None = None
    branch: tuple[Array, Array] | None = None

    def total(self) -> Array:
        """Returns the stream, `[N, D]`."""
        total = self.shared
        if self.low_high is not None:
            total = total + self.low_high[0] @ self.low_high[1]
        return total if self.branch is None else total + self.branch[0] * self.branch[1]


class _Normed(NamedTuple):
    """The output of the final norm, `stream * inverse * scale + offset`, in parts.

    Attributes:
      stream: `[N, D]`, in parts.
      inverse: `[N, 1]`, 1 / d.
      scale: `[1, D]`.
      offset: `[1, D]`; None = 0.
    """

    stream: _Stream
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
    last = select_layers(config, config.num_layers - 1, config.num_layers)
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

    Only `Rows.features`, `Rows.branch` and the vocabulary are factors of a product with W. They are
    common to all members that are vmapped.

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
    stream = normed.stream
    dtype = jnp.dtype(config.dtype or stream.shared.dtype)
    columns = vocabulary_columns(config, params, stream.shared.dtype)
    table, bias = columns._replace(bias=None), columns.bias
    scaled = lambda rows: (rows * normed.scale).astype(dtype)
    low = high = factor = branch = None
    if stream.low_high is not None:
        low, high = stream.low_high[0], multiply(Rows(scaled(stream.low_high[1])), table)
    if stream.branch is not None:
        factor, branch = stream.branch[0], scaled(stream.branch[1])
    if normed.offset is not None:
        of_offset = multiply(Rows(normed.offset.astype(dtype)), table)[0]
        bias = of_offset if bias is None else of_offset + bias
    rows = Rows(scaled(stream.shared), low, normed.inverse, branch, factor)
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
    features = normed.stream.total() * normed.inverse * normed.scale
    if normed.offset is not None:
        features += normed.offset
    return features.astype(config.dtype or features.dtype).reshape(*hidden.shape[:-1], -1)


def _normed(config: TransformerConfig, params: Params, hidden: Array) -> _Normed:
    x, activations = jnp.split(hidden.reshape(-1, hidden.shape[-1]), [config.width], axis=-1)
    stream, pair = _Stream(_centred(config, x)), _adapter(params)
    if pair is not None:
        stream = stream._replace(low_high=(activations @ pair["a"], _centred(config, pair["b"])))
        if config.post_norms:
            stream = _through_post_norm(config, params, activations, stream)
    inverse, norm = _inverse(config, stream.total()), params["params"]["final_norm"]
    offset = norm["bias"][None] if "bias" in norm else None
    return _Normed(stream, inverse, _scale(config, norm), offset)


def _through_post_norm(
    config: TransformerConfig, params: Params, activations: Array, stream: _Stream
) -> _Stream:
    """Replaces what an adapter adds to the output of mlp_out by what it adds behind the norm."""
    assert stream.low_high is not None
    block = jax.tree.map(lambda leaf: leaf[0], params["params"]["blocks"])
    dtype = jnp.dtype(config.dtype or activations.dtype)
    layer, scale = block["mlp_out"], block["mlp_out"].get("kernel_scale")
    output = multiply(Rows(activations.astype(dtype)), Columns(kernel=layer["kernel"], scale=scale))
    if config.mlp_bias:
        output += (layer["bias"] if scale is None else layer["bias"] * scale)[None]
    frozen, (low, high) = _centred(config, output), stream.low_high
    scale, inverse = _scale(config, block["mlp_post_norm"]), _inverse(config, frozen + low @ high)
    return stream._replace(
        low_high=(low * inverse, _centred(config, high * scale)),
        branch=(inverse - _inverse(config, frozen), _centred(config, frozen * scale)),
    )


def _scale(config: TransformerConfig, norm: dict[str, Array]) -> Array:
    scale = norm["scale"][None]
    return 1 + scale if config.norm_offset else scale


def _inverse(config: TransformerConfig, centred: Array) -> Array:
    """Returns the inverse deviations `[N, 1]` of rows that are centred."""
    mean_square = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return jax.lax.rsqrt(mean_square + config.norm_epsilon)


def _centred(config: TransformerConfig, rows: Array) -> Array:
    """Applies P to rows `[..., D]`, in float32 or wider."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return rows - jnp.mean(rows, axis=-1, keepdims=True) if config.norm == "layer" else rows


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
