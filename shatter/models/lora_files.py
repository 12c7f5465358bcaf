"""Saves and loads low-rank adapters in the PEFT layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.families import FAMILIES, family_of
from shatter.models.lora import LoraConfig, check_adapters, places_of_params
from shatter.models.peft_config import check_targets, read_peft_config, write_peft_config
from shatter.models.pretrained import generation_settings
from shatter.models.saving import check_finite, staged, write_json, write_tensors
from shatter.models.tokenizer import Tokenizer, read_json
from shatter.models.transformer import transformer
from shatter.models.transformer_config import TransformerConfig
from shatter.models.weight_files import (
    Stored,
    existing,
    open_weights,
    safetensors,
)
from shatter.types import Params

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_SIDES = {"a": "lora_A", "b": "lora_B"}


def save_lora(
    folder: str | Path,
    config: TransformerConfig,
    adapters: Params,
    lora: LoraConfig,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
    like: str | Path | None = None,
) -> None:
    """Saves adapters in the PEFT layout: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(model, folder)` loads them onto a base of transformers.
    `peft.AutoPeftModelForCausalLM.from_pretrained(folder)` and `transformers.AutoModelForCausalLM`
    also load the base, by the name that is saved here. All of them generate with the base's own
    generation_config.json. If training ended completions with another token, take the saved one:
    `model.generation_config = transformers.GenerationConfig.from_pretrained(folder)`.

    Args:
      folder: the folder to write to, made if it is missing; other files in it stay.
      config: the configuration of the base.
      adapters: the adapters of one member; they keep their types.
      lora: the configuration of the adapters.
      base: the base's folder, saved as an absolute path, or its name on the Hugging Face hub, from
        which the adapters' users load it. With None, they must name the base themselves.
      revision: commit, branch or tag of a base on the hub.
      tokenizer: the base's tokenizer, saved beside the adapters. None leaves the folder's as it is.
      like: the folder of the base, whose other generation settings are saved too. None = no others.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if the layout has no such target in the base's family, the adapters do not fit the
        base or are not finite, or a revision is given without a name on the hub.
      ImportError: if the packages of the extra "pretrained" are missing.
    """
    safetensors()
    places = check_adapters(_shapes(config), adapters, lora)
    modules = _modules(config)
    for target in places:
        if target not in modules:
            hint = " (in gpt2 query, key and value are one: 'qkv')" if "qkv" in modules else ""
            raise ValueError(
                f"the PEFT layout of {family_of(config)} has no module for the target {target!r}; "
                f"it has {', '.join(modules)}{hint}"
            )
    tensors = {}
    for target, place in places.items():
        pair = adapters["blocks"][place.projection]["adapters"][target]
        for side in _SIDES:
            for layer, matrix in enumerate(np.asarray(pair[side])):
                name = _tensor_name(modules[target], layer, side)
                tensors[name] = np.ascontiguousarray(matrix.T)  # a view would be saved untransposed
    check_finite(tensors.items())
    settings = write_peft_config(
        lora,
        target_modules=[modules[target].partition("{layer}.")[2] for target in places],
        fan_in_fan_out=family_of(config) == "gpt2",
        base=base,
        revision=revision,
    )
    generation = generation_settings(config, tokenizer, like)
    with staged(folder, config=_CONFIG) as staging:
        write_tensors(staging / _WEIGHTS, tensors)
        if generation:
            write_json(staging / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(staging)
        write_json(staging / _CONFIG, settings)


def load_lora(folder: str | Path, config: TransformerConfig) -> tuple[Params, LoraConfig]:
    """Loads adapters that `save_lora` or PEFT has saved, and checks every tensor.

    Args:
      folder: the folder with adapter_config.json and adapter_model.safetensors.
      config: the configuration of the base.

    Returns:
      `(adapters, lora)`, the adapters in the types in which they are stored.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a tensor is missing, unexpected, not finite or not of floats, or has another
        shape; if a field has another type or is out of its range; or if the adapters are of a kind
        that is not supported.
      ImportError: if the packages of the extra "pretrained" are missing.
    """
    safetensors()
    path = Path(folder).expanduser()
    settings_file, file = existing(path / _CONFIG), existing(path / _WEIGHTS)
    try:
        settings = read_peft_config(read_json(settings_file))
    except ValueError as error:
        raise ValueError(f"{settings_file}: {error}") from error
    places, names = places_of_params(_shapes(config)), _tensor_names(config)
    with open_weights(file) as opened:
        stored = {name: Stored(file, opened, name) for name in opened.keys()}
        targets = dict.fromkeys(
            target for (target, _), own in names.items() if not stored.keys().isdisjoint(own)
        )
        check_targets(settings, _modules_by_target(config), targets, file)
        lora = LoraConfig(settings.rank, settings.alpha, tuple(targets), settings.use_rslora)
        expected: dict[str, tuple[int, ...]] = {}
        for target in targets:
            place = places[target]
            expected |= dict.fromkeys(names[target, "a"], (lora.rank, place.inputs))
            expected |= dict.fromkeys(names[target, "b"], (place.outputs, lora.rank))
        _check_stored(file, {name: tensor.shape() for name, tensor in stored.items()}, expected)
        adapters: dict[str, Any] = {}
        for target in targets:
            projection = places[target].projection
            of_projection = adapters.setdefault(projection, {"adapters": {}})["adapters"]
            of_projection[target] = {
                side: jnp.asarray(np.stack([stored[name].read().T for name in names[target, side]]))
                for side in _SIDES
            }
    return {"blocks": adapters}, lora


def _shapes(config: TransformerConfig) -> Params:
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def _modules(config: TransformerConfig) -> dict[str, str]:
    """Returns the module of every target in transformers; `{layer}` stands for the block."""
    modules = {}
    for tensor in FAMILIES[family_of(config)].tensors:
        within, _, name = tensor.path.partition("/")
        if within == "blocks" and name.endswith("/kernel"):
            target = tensor.part or name.removesuffix("/kernel")
            modules[target] = tensor.name.removesuffix(".weight")
    return modules


def _modules_by_target(config: TransformerConfig) -> dict[str, list[str]]:
    """Returns the modules of every target in transformers, one a block."""
    return {
        target: [module.format(layer=layer) for layer in range(config.num_layers)]
        for target, module in _modules(config).items()
    }


def _tensor_names(config: TransformerConfig) -> dict[tuple[str, str], list[str]]:
    """Returns the names of the stored tensors of `(target, side)`, one a block."""
    return {
        (target, side): [_tensor_name(module, layer, side) for layer in range(config.num_layers)]
        for target, module in _modules(config).items()
        for side in _SIDES
    }


def _tensor_name(module: str, layer: int, side: str) -> str:
    return f"base_model.model.{module.format(layer=layer)}.{_SIDES[side]}.weight"


def _check_stored(
    file: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError for the first tensor that the configuration does not ask for."""
    for name in {**expected, **found}:
        if name not in found:
            raise ValueError(f"{file}: {name} is missing, expected with shape {expected[name]}")
        if name not in expected:
            raise ValueError(f"{file}: {name} with shape {found[name]} is unexpected")
        if found[name] != expected[name]:
            raise ValueError(
                f"{file}: {name} has shape {found[name]}, expected {expected[name]} (by {_CONFIG} "
                "and the configuration of the base)"
            )
