"""Low-rank adapters (LoRA): a few trainable matrices beside a transformer whose weights stay."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter.models.fields import FLAG, SIZE, Field, check_fields
from shatter.models.fused import fused_kernels_of_shapes, places_of_parts
from shatter.types import Array, Key, Params

FIELDS = {"rank": SIZE, "alpha": Field("number", 1e-6, 1e9), "use_rslora": FLAG}
"""Types and ranges of the fields of `LoraConfig`."""

_PROJECTIONS = ("qkv", "attention_out", "mlp_in", "mlp_out")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections have adapters, and how large the adapters are.

    Attributes:
      rank: the inner size of an adapter.
      alpha: the output of an adapter is multiplied by `alpha / rank`.
      targets: the projections: "query", "key", "value", or all three as one, "qkv";
        "attention_out"; "mlp_in", or where the feed-forward part is gated "gate" and "up"
        separately; "mlp_out".
      use_rslora: multiplies by `alpha / sqrt(rank)` instead, https://arxiv.org/abs/2312.03732.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("query", "value")
    use_rslora: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: if a field has another type or is out of its range (`FIELDS`), or the targets
            are not a tuple, empty, or not distinct.
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
        """The factor by which the output of an adapter is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class AdaptedKernel(NamedTuple):
    """The kernel, or the part of a fused kernel, to which an adapter adds.

    Attributes:
      projection: the name of the kernel's projection in a block.
      entries: the part, on the second last axis of the kernel; None = the whole kernel.
      layers: the number of blocks.
      inputs: the size of the inputs, flattened.
      outputs: the size of the outputs, flattened.
    """

    projection: str
    entries: slice | None
    layers: int
    inputs: int
    outputs: int


def init_lora(key: Key, params: Params, lora: LoraConfig) -> Params:
    """Draws initial adapters, `a` uniform within `1 / sqrt(inputs)` and `b` zero.

    Because `b` is zero, the model with its new adapters is the base.

    Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685; the bound is that of PEFT.

    Args:
      key: a typed key.
      params: parameters of a transformer, or their shapes as `jax.eval_shape` gives them.
      lora: targets and rank.

    Returns:
      Adapters: `{"blocks": {projection: {"adapters": {target: {"a": [layers, inputs, rank], "b":
      [layers, rank, outputs]}}}}}`, in the default float type. The adapters of an ensemble are one
      such tree whose leaves have an additional first axis M.

    Raises:
      ValueError: if a target is unknown, or the parameters are not those of a transformer.
    """
    adapters: dict[str, Any] = {}
    places = _places_of_targets(params, lora)
    keys = jax.random.split(key, len(places))
    for target_key, (target, place) in zip(keys, places.items(), strict=True):
        bound = place.inputs**-0.5
        shape = (place.layers, place.inputs, lora.rank)
        of_projection = adapters.setdefault(place.projection, {"adapters": {}})["adapters"]
        of_projection[target] = {
            "a": jax.random.uniform(target_key, shape, float, -bound, bound),
            "b": jnp.zeros((place.layers, lora.rank, place.outputs), float),
        }
    return {"blocks": adapters}


def with_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Returns parameters with adapters: the output of every target gains `scale x a b`.

    A training step updates the adapters and takes the base as a frozen argument. An ensemble on one
    base is `jax.vmap(lambda params, adapters: lm.apply(with_lora(params, adapters, lora), tokens),
    in_axes=(None, 0))`.

    Args:
      params: the parameters of the base.
      adapters: adapters as `init_lora` makes them.
      lora: the configuration of the adapters.

    Returns:
      Parameters for every function of the transformer.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or the base has adapters already.
    """
    check_adapters(params, adapters, lora)

    def scaled(path: Any, leaf: Array) -> Array:
        return leaf * lora.scale if path[-1].key == "b" else leaf

    return {**params, "lora": jax.tree_util.tree_map_with_path(scaled, adapters)}


def merge_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Returns the base with the adapters added to its kernels: `kernel + scale x a b`.

    Args:
      params: the parameters of the base.
      adapters: adapters as `init_lora` makes them.
      lora: the configuration of the adapters.

    Returns:
      Parameters without adapters, in the types of the base. The model is that of `with_lora`, and
      as fast as the base.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or the base has adapters already
        or kernels of integers.
    """
    places = check_adapters(params, adapters, lora)
    blocks = dict(params["params"]["blocks"])
    for target, place in places.items():
        pair = adapters["blocks"][place.projection]["adapters"][target]
        kernel = blocks[place.projection]["kernel"]
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise ValueError(
                f"adapters cannot be merged into a kernel of {kernel.dtype}: merge them into the "
                "base as it was before shatter.models.narrow"
            )
        product = lora.scale * jnp.einsum("lir,lro->lio", pair["a"], pair["b"])
        kernel_dtype = kernel.dtype
        kernel = kernel.astype(jnp.promote_types(kernel_dtype, product.dtype))
        where = ... if place.entries is None else (..., place.entries, slice(None))
        kernel = kernel.at[where].add(product.reshape(kernel[where].shape)).astype(kernel_dtype)
        blocks[place.projection] = {**blocks[place.projection], "kernel": kernel}
    return {**params, "params": {**params["params"], "blocks": blocks}}


def places_of_params(params: Params) -> dict[str, AdaptedKernel]:
    """Returns where adapters may be added in a transformer.

    Args:
      params: parameters of a transformer, or their shapes.

    Returns:
      The place of every possible target, by the target's name.

    Raises:
      ValueError: if the parameters are not those of a transformer.
    """
    try:
        blocks = params["params"]["blocks"]
        shapes = {name: blocks[name]["kernel"].shape for name in _PROJECTIONS}
    except (KeyError, TypeError) as error:
        raise ValueError(
            "adapters need the parameters of shatter.models.transformer, {'params': {'blocks': "
            f"...}}}}; found a {type(params).__name__} without the key {error}"
        ) from error
    places = {}
    for name, (layers, *shape) in shapes.items():
        inputs = math.prod(shape[:2]) if name == "attention_out" else shape[0]
        places[name] = AdaptedKernel(name, None, layers, inputs, math.prod(shape) // inputs)
    for name, part in places_of_parts(fused_kernels_of_shapes(shapes)).items():
        outputs = (part.entries.stop - part.entries.start) * shapes[part.kernel][-1]
        places[name] = places[part.kernel]._replace(entries=part.entries, outputs=outputs)
    return places


def _places_of_targets(params: Params, lora: LoraConfig) -> dict[str, AdaptedKernel]:
    places = places_of_params(params)
    for target in lora.targets:
        if target not in places:
            raise ValueError(f"the target {target!r} is unknown; known are {', '.join(places)}")
    return {target: places[target] for target in lora.targets}


def check_adapters(params: Params, adapters: Params, lora: LoraConfig) -> dict[str, AdaptedKernel]:
    """Checks that adapters fit a transformer, and returns where they are added.

    Args:
      params: the parameters of the base, or their shapes.
      adapters: adapters as `init_lora` makes them.
      lora: the configuration of the adapters.

    Returns:
      The place of every target of `lora`, by the target's name.

    Raises:
      ValueError: if the adapters do not fit the base or `lora`, or the base has adapters already.
    """
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora') already: merge those with "
            "merge_lora first, or pass the base"
        )
    fitting = jax.eval_shape(partial(init_lora, lora=lora), jax.random.key(0), params)
    expected, found = _leaf_shapes(fitting), _leaf_shapes(adapters)
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            raise ValueError(
                f"the adapters do not fit the base and {lora}: {path} has shape "
                f"{found.get(path)}, expected {expected.get(path)} (None = absent)"
            )
    return _places_of_targets(params, lora)


def _leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
