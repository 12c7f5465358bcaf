"""Members that are low-rank adapters on one frozen base, which all of them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from shatter.ensembles.independent import Start, check_members, exponential_weights, start_at
from shatter.models import LanguageModel, LoraConfig, init_lora, with_lora
from shatter.numerics import at_least_float32
from shatter.types import Array, Ensemble, Key, Params


def adapters(
    lm: LanguageModel,
    params: Params,
    lora: LoraConfig,
    *,
    num_members: int,
    prior_scale: float | Array,
    start: Start = "draw",
) -> Ensemble:
    """Returns an ensemble of low-rank adapters on one frozen base.

    A member is the base plus an update of its own.

    A member has a prior draw of its own, around a zero update, and is pulled to it:
    `a_m ~ U(-1, 1) / sqrt(inputs)`, `b_m ~ sigma N(0, 1) / sqrt(rank)`. Its penalty is
    `3 inputs |a - a_m|^2 / 2 + rank |b - b_m|^2 / (2 sigma^2)`, its data weights are Exp(1). The
    spread of members as functions grows with sigma; `prior_scale_for` finds the sigma at which they
    disagree as much as wanted before there is data.

    Where only upper blocks have adapters, pass the upper part of `shatter.models.split_layers` as
    `lm`: the blocks below are then computed once for all members. To make one member a model of its
    own use `shatter.models.merge_lora`; for the members' mean call `mean_adapters` first.

    Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685, for the adapters; anchoring as in
    `anchored`. The prior over adapters is ours.

    Args:
      lm: the language model, a transformer or the upper part of one.
      params: its parameters, the base.
      lora: targets and rank.
      num_members: M.
      prior_scale: sigma > 0.
      start: where training starts: "draw", at a_m and b_m, or "centre", at a_m and b = 0, so that
        the members are the base until there is data.

    Returns:
      An ensemble; `own` are M adapters, `shared` is the base.

    Raises:
      ValueError: if there is no member, no such start, or the targets do not fit the base.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import ensembles, models
      >>> config = models.TransformerConfig(
      ...     vocab_size=5, max_length=8, width=8, num_layers=1, num_heads=2
      ... )
      >>> lm = models.transformer(config)
      >>> params = lm.init(jax.random.key(0))
      >>> lora = models.LoraConfig(rank=2, alpha=2.0, targets=("query", "value"))
      >>> ensemble = ensembles.adapters(lm, params, lora, num_members=3, prior_scale=1.0)
      >>> base, own = ensemble.init(jax.random.key(1))
      >>> logits = jax.vmap(ensemble.apply, in_axes=(None, 0, None))
      >>> logits(base, own, jnp.array([0, 2, 1])).shape  # members, tokens, vocabulary
      (3, 3, 5)
    """
    check_members(num_members)

    def draw(key: Key) -> Params:
        start_key, noise_key = jax.random.split(key)
        leaves, treedef = jax.tree.flatten_with_path(init_lora(start_key, params, lora))
        keys = jax.random.split(noise_key, len(leaves))
        drawn = [
            prior_scale * lora.rank**-0.5 * jax.random.normal(k, leaf.shape, leaf.dtype)
            if _is_b(path)
            else leaf
            for k, (path, leaf) in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, drawn)

    def init(key: Key) -> tuple[Params, Params]:
        return params, jax.vmap(draw)(jax.random.split(key, num_members))

    def apply(shared: Params, own: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        return lm.apply(with_lora(shared, own, lora), tokens, valid=valid)

    def penalty(own: Params, anchor: Params) -> Array:
        def of_leaf(path: Any, leaf: Array, drawn: Array) -> Array:
            precision = lora.rank / prior_scale**2 if _is_b(path) else 3.0 * leaf.shape[-2]
            gap = at_least_float32(leaf) - at_least_float32(drawn)
            return 0.5 * precision * jnp.sum(jnp.square(gap))

        terms = jax.tree.map_with_path(of_leaf, own, anchor)
        return jax.tree.reduce(jnp.add, terms)

    def centre(anchor: Params) -> Params:
        without_b = lambda path, leaf: jnp.zeros_like(leaf) if _is_b(path) else leaf
        return jax.tree.map_with_path(without_b, anchor)

    return Ensemble(
        init=init,
        apply=apply,
        penalty=penalty,
        observation_weights=exponential_weights(num_members),
        start=start_at(start, centre),
    )


def mean_adapters(own: Params, lora: LoraConfig) -> tuple[Params, LoraConfig]:
    """Returns the mean of the members' updates, `(1/M) sum_m scale a_m b_m`, of rank M r.

    Args:
      own: the adapters of M members, an axis M in front of every leaf.
      lora: of the members.

    Returns:
      The adapters and their config, for `shatter.models.merge_lora` and `save_lora`.
    """

    def joined(path: Any, leaf: Array) -> Array:
        num_members = leaf.shape[0]
        if _is_b(path):  # [M, layers, rank, out] -> [layers, M rank, out]
            return jnp.concatenate(leaf / num_members, axis=-2)
        return jnp.concatenate(leaf, axis=-1)  # [M, layers, in, rank] -> [layers, in, M rank]

    num_members = jax.tree.leaves(own)[0].shape[0]
    growth = num_members**0.5 if lora.use_rslora else num_members
    wide = dataclasses.replace(lora, rank=lora.rank * num_members, alpha=lora.alpha * growth)
    return jax.tree.map_with_path(joined, own), wide


def whole_adapters(own: Params, layer: int) -> Params:
    """Returns adapters of a whole transformer from those of its blocks from `layer` on.

    Args:
      own: the adapters of one member on the upper part of `shatter.models.split_layers`.
      layer: the first block of that part; the last block where the cut is at its mlp_out.

    Returns:
      The adapters, zero in the blocks below.
    """
    pad = lambda leaf: jnp.pad(leaf, ((layer, 0), *((0, 0),) * (leaf.ndim - 1)))
    return jax.tree.map(pad, own)


def _is_b(path: Any) -> bool:
    return path[-1].key == "b"
