"""A transformer cut in two, so that many share what lies below."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.models.base import LanguageModel
from shatter.models.transformer import forward, transformer
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array, Params


class Layers(NamedTuple):
    """A transformer cut in two, `upper(lower(tokens)) = apply(tokens)`.

    Attributes:
      lower: `(params, tokens[..., T], *, valid=None) -> hidden[..., T, D]`, what enters the upper
        part; `D + H` numbers where the cut is at the last mlp_out.
      upper: `apply` and `features` of a language model whose tokens are `hidden`; its parameters
        are those of `upper_params`.
      upper_params: `(params) -> params`, the upper blocks alone, to which adapters may be added.
    """

    lower: Callable[..., Array]
    upper: LanguageModel
    upper_params: Callable[[Params], Params]


def split_layers(config: TransformerConfig, layer: int) -> Layers:
    """Cuts a transformer below a block, so that many can share what lies below.

    What is frozen is computed once for all members of an ensemble, or once for ever.

    With `layer = num_layers` the cut goes through the last block, below its mlp_out, and only that
    projection may have adapters. `hidden` is then `[..., T, D + H]`: what the frozen model's last
    block puts out, x, beside what enters its mlp_out, g. With the final norm's scale s, inverse
    deviation 1 / d, centring P (the identity for RMS norms) and offset o,

        logits = W (s P (x + g a b) / d + o) = (W s P x + (g a) (W s P b)) / d + W o,

    where no product with the vocabulary's W is of a member and a token: W s P x is common to all
    members, and W s P b has `rank` rows. Exact; ours. Of the upper parameters only the norm's and
    the vocabulary's are read: x has the frozen mlp_out in it.

    Args:
      config: of the transformer.
      layer: the first block of the upper part, 1 to `num_layers`.

    Returns:
      The parts, functions of the whole transformer's parameters, without adapters. They raise
      ValueError if it has some, and `upper` above the last mlp_out if another projection has.

    Raises:
      ValueError: if there is no such block.
    """
    if not 1 <= layer <= config.num_layers:
        raise ValueError(f"layer must be in [1, {config.num_layers}], found {layer}")
    if layer == config.num_layers:
        return _split_last_projection(config)
    below = dataclasses.replace(config, num_layers=layer)
    above = dataclasses.replace(config, num_layers=config.num_layers - layer)

    def lower(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        return forward(below, _blocks(params, slice(layer)), tokens, valid).hidden

    def apply(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        return forward(above, params, hidden, valid).logits

    def features(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        return forward(above, params, hidden, valid).features

    upper = LanguageModel(transformer(above).init, apply, features)
    return Layers(lower, upper, lambda params: _blocks(params, slice(layer, None)))


def _split_last_projection(config: TransformerConfig) -> Layers:
    last = dataclasses.replace(config, num_layers=1)
    below = split_layers(config, config.num_layers - 1) if config.num_layers > 1 else None

    def lower(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        inputs = below.lower(params, tokens, valid=valid) if below else tokens
        outputs = forward(last, upper_params(params), inputs, valid, with_activations=True)
        assert outputs.activations is not None
        return jnp.concatenate([outputs.hidden, outputs.activations], axis=-1)

    def centred(rows: Array) -> Array:
        rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        return rows - jnp.mean(rows, axis=-1, keepdims=True) if config.norm == "layer" else rows

    def parts(params: Params, hidden: Array) -> tuple[Array, tuple[Array, Array] | None, Array]:
        """Of rows: P x, (g a, P b) where there are adapters, and 1 / d."""
        x, activations = jnp.split(hidden.reshape(-1, hidden.shape[-1]), [config.width], axis=-1)
        rows, pair = centred(x), _adapter(params)
        low = None if pair is None else (activations @ pair["a"], centred(pair["b"]))
        mean_square = jnp.mean(jnp.square(moved(rows, low)), axis=-1, keepdims=True)
        return rows, low, jax.lax.rsqrt(mean_square + config.norm_epsilon)

    def moved(rows: Array, low: tuple[Array, Array] | None) -> Array:
        return rows if low is None else rows + low[0] @ low[1]

    def norm(params: Params) -> tuple[Array, Array]:
        """Scale and offset, `[1, D]`."""
        found = params["params"]["final_norm"]
        scale = found["scale"][None]
        return scale, found["bias"][None] if "bias" in found else jnp.zeros_like(scale)

    def apply(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        del valid
        weights = params["params"]
        rows, low, inverse = parts(params, hidden)
        scale, offset = norm(params)
        table = (
            weights["token_embedding"]["embedding"].T if config.tied else weights["head"]["kernel"]
        )

        def product(rows: Array) -> Array:
            dtype = jnp.dtype(config.dtype or rows.dtype)
            wide = jnp.promote_types(dtype, jnp.float32)
            return jnp.matmul(rows.astype(dtype), table.astype(dtype), preferred_element_type=wide)

        logits = product(rows * scale)
        if low is not None:
            logits += low[0] @ product(low[1] * scale)
        logits = logits * inverse + product(offset)
        if config.head_bias and not config.tied:
            logits += weights["head"]["bias"][None]
        return logits.reshape(*hidden.shape[:-1], -1)

    def features(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        del valid
        rows, low, inverse = parts(params, hidden)
        scale, offset = norm(params)
        found = moved(rows, low) * inverse * scale + offset
        return found.astype(config.dtype or found.dtype).reshape(*hidden.shape[:-1], -1)

    def upper_params(params: Params) -> Params:
        return _blocks(params, slice(config.num_layers - 1, None))

    return Layers(lower, LanguageModel(transformer(last).init, apply, features), upper_params)


def _blocks(params: Params, part: slice) -> Params:
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora'): cut the base, and put adapters "
            "of the upper part beside its upper_params, or merge them first"
        )
    some = jax.tree.map(lambda leaf: leaf[part], params["params"]["blocks"])
    return {**params, "params": {**params["params"], "blocks": some}}


def _adapter(params: Params) -> dict[str, Array] | None:
    """The last block's adapter on mlp_out, if there is one.

    Raises:
      ValueError: if there are others, or of more blocks.
    """
    if "lora" not in params:
        return None
    blocks = params["lora"]["blocks"]
    found = [target for part in blocks.values() for target in part["adapters"]]
    num = jax.tree.leaves(blocks)[0].shape[0]
    if found != ["mlp_out"] or num != 1:
        raise ValueError(
            f"above the cut at the last block's mlp_out, that alone may have adapters, found "
            f"{', '.join(found)} of {num} blocks: cut at a lower layer, or adapt mlp_out alone"
        )
    return jax.tree.map(lambda leaf: leaf[0], blocks["mlp_out"]["adapters"]["mlp_out"])
