"""Adapters in the PEFT layout: to files, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.families import FAMILIES, family_of
from shatter.models.lora import LoraConfig, check_adapters, places_of
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

    `peft.PeftModel.from_pretrained(model, folder)` loads them onto the base in transformers;
    `peft.AutoPeftModelForCausalLM.from_pretrained(folder)` and `transformers.AutoModelForCausalLM`
    fetch the base by its name too. Those generate by the base's own generation_config.json; where
    training closed completions with another token, the folder's has it:
    `model.generation_config = transformers.GenerationConfig.from_pretrained(folder)`.

    Args:
      folder: where to; made where it is not. Other files in it stay.
      config: of the base.
      adapters: of one member, stored in the types they have.
      lora: of the adapters.
      base: folder or hub name of the base, for those who load the adapters: without it peft alone
        can, and only onto a base that the user names. A folder is written with its whole path.
      revision: of a name on the hub: a commit, branch or tag.
      tokenizer: of the base, saved beside the adapters. None leaves a tokenizer that is there.
      like: the folder of the base, whose other generation settings are kept. None keeps none.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if the layout has no such target in the base's family, the adapters do not fit or
        are not finite, or there is a revision without a name on the hub.
      ImportError: without the packages of the extra "pretrained".
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
                name = _name(modules[target], layer, side)
                tensors[name] = np.ascontiguousarray(matrix.T)  # not a view: it would be scrambled
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
    """Loads adapters that `save_lora` or PEFT saved; the name and shape of every tensor is checked.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the base.

    Returns:
      `(adapters, lora)`, in the types they are stored in.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a tensor is missing, unexpected, misshapen, not of floats or not finite, a
        field is of another type or out of its range, or the adapters are of a kind that is not
        supported.
      ImportError: without the packages of the extra "pretrained".
    """
    safetensors()
    path = Path(folder).expanduser()
    settings_file, file = existing(path / _CONFIG), existing(path / _WEIGHTS)
    try:
        settings = read_peft_config(read_json(settings_file))
    except ValueError as error:
        raise ValueError(f"{settings_file}: {error}") from error
    modules, places = _modules(config), places_of(_shapes(config))
    names = {
        (target, side): [_name(module, layer, side) for layer in range(config.num_layers)]
        for target, module in modules.items()
        for side in _SIDES
    }
    with open_weights(file) as opened:
        stored = {name: Stored(file, opened, name) for name in opened.keys()}
        targets = dict.fromkeys(
            target for (target, _), own in names.items() if not stored.keys().isdisjoint(own)
        )
        check_targets(settings, _of_layers(config), targets, file)
        lora = LoraConfig(settings.rank, settings.alpha, tuple(targets), settings.use_rslora)
        expected: dict[str, tuple[int, ...]] = {}
        for target in targets:
            place = places[target]
            expected |= dict.fromkeys(names[target, "a"], (lora.rank, place.inputs))
            expected |= dict.fromkeys(names[target, "b"], (place.outputs, lora.rank))
        _check_stored(file, {name: tensor.shape() for name, tensor in stored.items()}, expected)
        adapters: dict[str, Any] = {}
        for target in targets:
            parts = adapters.setdefault(places[target].projection, {"adapters": {}})["adapters"]
            parts[target] = {
                side: jnp.asarray(np.stack([stored[name].read().T for name in names[target, side]]))
                for side in _SIDES
            }
    return {"blocks": adapters}, lora


def _shapes(config: TransformerConfig) -> Params:
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def _modules(config: TransformerConfig) -> dict[str, str]:
    """Target -> its module in transformers, `{layer}` standing for the block."""
    modules = {}
    for tensor in FAMILIES[family_of(config)].tensors:
        within, _, name = tensor.path.partition("/")
        if within == "blocks" and name.endswith("/kernel"):
            target = tensor.part or name.removesuffix("/kernel")
            modules[target] = tensor.name.removesuffix(".weight")
    return modules


def _of_layers(config: TransformerConfig) -> dict[str, list[str]]:
    """Target -> its modules in transformers, one a block."""
    return {
        target: [module.format(layer=layer) for layer in range(config.num_layers)]
        for target, module in _modules(config).items()
    }


def _name(module: str, layer: int, side: str) -> str:
    return f"base_model.model.{module.format(layer=layer)}.{_SIDES[side]}.weight"


def _check_stored(
    file: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses names and shapes that the config does not ask for; names the first."""
    for name in {**expected, **found}:
        if name not in found:
            raise ValueError(f"{file}: {name} is missing, expected with shape {expected[name]}")
        if name not in expected:
            raise ValueError(f"{file}: {name} with shape {found[name]} is unexpected")
        if found[name] != expected[name]:
            raise ValueError(
                f"{file}: {name} has shape {found[name]}, expected {expected[name]} (of {_CONFIG} "
                "and the base's config)"
            )
