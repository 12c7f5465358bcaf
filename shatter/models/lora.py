"""Low-rank adapters of a transformer: trainable, few, beside a base that stays as it is."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter.models.fields import FLAG, SIZE, Field, check_fields
from shatter.types import Array, Key, Params

FIELDS = {"rank": SIZE, "alpha": Field("number", 1e-6, 1e9), "use_rslora": FLAG}
"""Types and ranges of the fields of `LoraConfig`."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections have adapters, and of what size.

    Attributes:
      rank: inner size of an adapter.
      alpha: an adapter adds `alpha / rank` times its product.
      targets: "query", "key" and "value" each for itself, or "qkv" as one; "attention_out"; "gate"
        and "up" each for itself where the feed-forward part is gated; "mlp_in"; "mlp_out".
      use_rslora: `alpha / sqrt(rank)` instead, https://arxiv.org/abs/2312.03732.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("query", "value")
    use_rslora: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
          ValueError: if a field is of another type or out of its range (`FIELDS`), or the targets
            are no tuple, or empty, or not distinct.
        """
        check_fields(vars(self), FIELDS)
        if not isinstance(self.targets, tuple) or not self.targets:
            raise ValueError(
                f"targets must be a tuple of names such as ('query', 'value'), found "
                f"{self.targets!r}"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be distinct, found {self.targets}")

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class Place(NamedTuple):
    """Where an adapter adds.

    Attributes:
      projection: of the blocks.
      entries: of the second last axis of its kernel; None = the whole kernel.
      layers: number of blocks.
      inputs: flattened.
      outputs: flattened.
    """

    projection: str
    entries: slice | None
    layers: int
    inputs: int
    outputs: int


def init_lora(key: Key, params: Params, lora: LoraConfig) -> Params:
    """Draws adapters that change nothing yet: `a` uniform within `1 / sqrt(inputs)`, `b` zero.

    Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685; the bound as in PEFT.

    Args:
      key: a typed key.
      params: of a transformer, or their shapes (of `jax.eval_shape`).
      lora: targets and rank.

    Returns:
      Adapters: `{"blocks": {projection: {"adapters": {target: {"a": [layers, inputs, rank], "b":
      [layers, rank, outputs]}}}}}`, in the default float type. Members of an ensemble are one such
      tree with an axis M in front.

    Raises:
      ValueError: if a target is unknown, or the parameters are not those of a transformer.
    """
    adapters: dict[str, Any] = {}
    places = _targets(params, lora)
    for own, (target, place) in zip(
        jax.random.split(key, len(places)), places.items(), strict=True
    ):
        bound = place.inputs**-0.5
        shape = (place.layers, place.inputs, lora.rank)
        parts = adapters.setdefault(place.projection, {"adapters": {}})["adapters"]
        parts[target] = {
            "a": jax.random.uniform(own, shape, float, -bound, bound),
            "b": jnp.zeros((place.layers, lora.rank, place.outputs), float),
        }
    return {"blocks": adapters}


def with_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Puts adapters beside the base: every target's output gains `scale x a b`.

    Adapters are what a training step learns; the base is an argument of it, frozen. An ensemble on
    one base: `jax.vmap(lambda params, own: lm.apply(with_lora(params, own, lora), tokens),
    in_axes=(None, 0))`.

    Args:
      params: of the base.
      adapters: of `init_lora`.
      lora: of the adapters.

    Returns:
      Parameters for every function of the transformer.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or it has adapters already.
    """
    check_adapters(params, adapters, lora)

    def scaled(path: Any, leaf: Array) -> Array:
        return leaf * lora.scale if path[-1].key == "b" else leaf

    return {**params, "lora": jax.tree_util.tree_map_with_path(scaled, adapters)}


def merge_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Adds the adapters to the base's kernels: `kernel + scale x a b`.

    Args:
      params: of the base.
      adapters: of `init_lora`.
      lora: of the adapters.

    Returns:
      Parameters without adapters, with which the model is that of `with_lora`, as fast as the base;
      in the types of the base.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or it has adapters already.
    """
    places = check_adapters(params, adapters, lora)
    blocks = dict(params["params"]["blocks"])
    for target, place in places.items():
        pair = adapters["blocks"][place.projection]["adapters"][target]
        kernel = blocks[place.projection]["kernel"]
        product = lora.scale * jnp.einsum("lir,lro->lio", pair["a"], pair["b"])
        kernel_dtype = kernel.dtype
        kernel = kernel.astype(jnp.promote_types(kernel_dtype, product.dtype))
        where = ... if place.entries is None else (..., place.entries, slice(None))
        kernel = kernel.at[where].add(product.reshape(kernel[where].shape)).astype(kernel_dtype)
        blocks[place.projection] = {**blocks[place.projection], "kernel": kernel}
    return {**params, "params": {**params["params"], "blocks": blocks}}


def places_of(params: Params) -> dict[str, Place]:
    """Every target that a transformer has.

    Args:
      params: of a transformer, or their shapes.

    Returns:
      Where adapters of each target add, by its name.

    Raises:
      ValueError: if the parameters are not those of a transformer.
    """
    try:
        blocks = params["params"]["blocks"]
        shapes = {
            name: blocks[name]["kernel"].shape
            for name in ("qkv", "attention_out", "mlp_in", "mlp_out")
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            "adapters are for the parameters of shatter.models.transformer, {'params': {'blocks': "
            f"...}}}}; found a {type(params).__name__} without the part {error}"
        ) from error
    places = {}
    for name, (layers, *shape) in shapes.items():
        inputs = math.prod(shape[:2]) if name == "attention_out" else shape[0]
        places[name] = Place(name, None, layers, inputs, math.prod(shape) // inputs)

    def split(name: str, parts: Mapping[str, int]) -> None:
        start, size = 0, shapes[name][-1]
        for part, entries in parts.items():
            where = slice(start, start + entries)
            places[part] = places[name]._replace(entries=where, outputs=entries * size)
            start += entries

    heads = shapes["attention_out"][1]
    kv_heads = (shapes["qkv"][2] - heads) // 2
    split("qkv", {"query": heads, "key": kv_heads, "value": kv_heads})
    if len(shapes["mlp_in"]) == 4:
        split("mlp_in", {"gate": 1, "up": 1})
    return places


def _targets(params: Params, lora: LoraConfig) -> dict[str, Place]:
    places = places_of(params)
    for target in lora.targets:
        if target not in places:
            raise ValueError(f"the target {target!r} is unknown; known are {', '.join(places)}")
    return {target: places[target] for target in lora.targets}


def check_adapters(params: Params, adapters: Params, lora: LoraConfig) -> dict[str, Place]:
    """Refuses adapters that do not fit.

    Args:
      params: of the base, or their shapes.
      adapters: of `init_lora`.
      lora: of the adapters.

    Returns:
      Where the adapters of each target add, by its name.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or it has adapters already.
    """
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora') already: merge those first, or "
            "pass the base"
        )
    expected = jax.eval_shape(partial(init_lora, lora=lora), jax.random.key(0), params)
    wanted, given = _leaf_shapes(expected), _leaf_shapes(adapters)
    for path in {**wanted, **given}:
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"the adapters do not fit the base and {lora}: {path} has shape "
                f"{given.get(path)}, expected {wanted.get(path)} (None = absent)"
            )
    return _targets(params, lora)


def _leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
