"""A transformer cut in two, so that many upper parts share what the lower part computes."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax

from shatter.factored import FactoredLogits
from shatter.models.base import LanguageModel
from shatter.models.last_projection import (
    factored_above,
    features_above,
    logits_above,
    stream_and_activations,
)
from shatter.models.transformer import factored_forward, forward, transformer
from shatter.models.transformer_config import TransformerConfig, select_layers
from shatter.types import Array, Params


class Layers(NamedTuple):
    """A transformer cut in two, `upper(lower(tokens)) = apply(tokens)`.

    Attributes:
      lower: `(params, tokens[..., T], *, valid=None) -> hidden[..., T, D]`, what enters the upper
        part. The last axis is `D + H` where the cut is at the last mlp_out.
      upper: a language model with `apply`, `features` and `factored`, which takes `hidden` in place
        of tokens and `upper_params(params)` as parameters.
      upper_params: `(params) -> params`, the parameters of the upper part, to which adapters may be
        added.
    """

    lower: Callable[..., Array]
    upper: LanguageModel
    upper_params: Callable[[Params], Params]


def split_layers(config: TransformerConfig, layer: int) -> Layers:
    """Cuts a transformer below a block.

    What lies below the cut and is frozen is computed once for all members of an ensemble, or once
    for a whole run.

    With `layer = num_layers` the cut goes through the last block, below its mlp_out, and only that
    projection may have adapters. `hidden` is then `[..., T, D + H]`, the output of the frozen
    model's last block beside the input of its mlp_out, and all members share the product with the
    vocabulary (`last_projection.py` has the formula). Of the upper parameters only those of the
    final norm and of the vocabulary are read, because the frozen mlp_out is in `hidden` already;
    with `post_norms` also those of mlp_out and of its norm.

    Args:
      config: the configuration of the transformer.
      layer: the first block of the upper part, 1 to `num_layers`.

    Returns:
      The two parts, functions of the whole transformer's parameters without adapters. They raise
      ValueError if the parameters have adapters; so does `upper` above the last mlp_out if another
      projection has some.

    Raises:
      ValueError: if there is no such block.
    """
    if not 1 <= layer <= config.num_layers:
        raise ValueError(f"layer must be in [1, {config.num_layers}], found {layer}")
    if layer == config.num_layers:
        return _split_last_projection(config)
    below = select_layers(config, 0, layer)
    above = select_layers(config, layer, config.num_layers)

    def lower(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        return forward(below, _select_blocks(params, slice(layer)), tokens, valid).hidden

    def apply(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        return forward(above, params, hidden, valid).logits

    def features(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        return forward(above, params, hidden, valid).features

    def factored(params: Params, hidden: Array, *, valid: Array | None = None) -> FactoredLogits:
        return factored_forward(above, params, hidden, valid)

    upper = LanguageModel(transformer(above).init, apply, features, factored=factored)
    return Layers(lower, upper, lambda params: _select_blocks(params, slice(layer, None)))


def _split_last_projection(config: TransformerConfig) -> Layers:
    below = split_layers(config, config.num_layers - 1) if config.num_layers > 1 else None

    def lower(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        inputs = below.lower(params, tokens, valid=valid) if below else tokens
        return stream_and_activations(config, upper_params(params), inputs, valid)

    def apply(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        del valid
        return logits_above(config, params, hidden)

    def features(params: Params, hidden: Array, *, valid: Array | None = None) -> Array:
        del valid
        return features_above(config, params, hidden)

    def factored(params: Params, hidden: Array, *, valid: Array | None = None) -> FactoredLogits:
        del valid
        return factored_above(config, params, hidden)

    def upper_params(params: Params) -> Params:
        return _select_blocks(params, slice(config.num_layers - 1, None))

    init = transformer(select_layers(config, config.num_layers - 1, config.num_layers)).init
    upper = LanguageModel(init, apply, features, factored=factored)
    return Layers(lower, upper, upper_params)


def _select_blocks(params: Params, layers: slice) -> Params:
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora'): cut the base and add adapters "
            "to its upper_params, or merge the adapters with merge_lora first"
        )
    blocks = jax.tree.map(lambda leaf: leaf[layers], params["params"]["blocks"])
    return {**params, "params": {**params["params"], "blocks": blocks}}
