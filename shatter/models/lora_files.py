"""Adapters in the PEFT layout: to files, and back."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter.models.families import FAMILIES, family_of
from shatter.models.lora import LoraConfig, check_adapters, places_of
from shatter.models.pretrained_weights import existing, safetensors
from shatter.models.tokenizer import read_json
from shatter.models.transformer import transformer
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Params

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_SIDES = {"a": "lora_A", "b": "lora_B"}
# What PEFT can have besides, and the values with which it changes nothing.
_ABSENT = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    # Other ways to begin change the base as well.
    "init_lora_weights": (True, False, None, "gaussian", "eva"),
}


def save_lora(
    folder: str | Path,
    config: TransformerConfig,
    adapters: Params,
    lora: LoraConfig,
    *,
    base: str | None = None,
) -> None:
    """Saves adapters in the PEFT layout: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(model, folder)` loads them onto the base in transformers.

    Args:
      folder: where to; made where it is not. Other files in it stay.
      config: of the base.
      adapters: of one member, stored in the types they have.
      lora: of the adapters.
      base: folder or hub name of the base, for those who load the adapters.

    Raises:
      ValueError: if the layout has no such target in the base's family, or the adapters do not fit.
      ImportError: without the packages of the extra "pretrained".
    """
    package = safetensors()
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
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.use_rslora,
        "target_modules": [modules[target].partition("{layer}.")[2] for target in places],
        "fan_in_fan_out": family_of(config) == "gpt2",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    weights, text = path / f".{_WEIGHTS}.{os.getpid()}", path / f".{_CONFIG}.{os.getpid()}"
    package.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    text.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(weights, path / _WEIGHTS)
    os.replace(text, path / _CONFIG)


def load_lora(folder: str | Path, config: TransformerConfig) -> tuple[Params, LoraConfig]:
    """Loads adapters that `save_lora` or PEFT saved; the name and shape of every tensor is checked.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the base.

    Returns:
      `(adapters, lora)`, in the types they are stored in.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a tensor is missing, unexpected or misshapen, or the adapters are of a kind
        that is not supported.
      ImportError: without the packages of the extra "pretrained".
    """
    package = safetensors()
    path = Path(folder).expanduser()
    settings = read_json(existing(path / _CONFIG))
    file = existing(path / _WEIGHTS)
    try:
        stored = package.numpy.load_file(file)
    except package.SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from error
    modules, places = _modules(config), places_of(_shapes(config))
    names = {
        (target, side): [_name(module, layer, side) for layer in range(config.num_layers)]
        for target, module in modules.items()
        for side in _SIDES
    }
    targets = dict.fromkeys(
        target for (target, _), own in names.items() if not stored.keys().isdisjoint(own)
    )
    lora = _read_config(settings, tuple(targets), path / _CONFIG, file)
    expected: dict[str, tuple[int, ...]] = {}
    for target in targets:
        place = places[target]
        expected |= dict.fromkeys(names[target, "a"], (lora.rank, place.inputs))
        expected |= dict.fromkeys(names[target, "b"], (place.outputs, lora.rank))
    _check_stored(file, {name: value.shape for name, value in stored.items()}, expected)
    adapters: dict[str, Any] = {}
    for target in targets:
        parts = adapters.setdefault(places[target].projection, {"adapters": {}})["adapters"]
        parts[target] = {
            side: jnp.asarray(np.stack([stored[name].T for name in names[target, side]]))
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


def _name(module: str, layer: int, side: str) -> str:
    return f"base_model.model.{module.format(layer=layer)}.{_SIDES[side]}.weight"


def _read_config(
    settings: Mapping[str, Any], targets: tuple[str, ...], path: Path, file: Path
) -> LoraConfig:
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', found {settings.get('peft_type')!r}")
    for name, harmless in _ABSENT.items():
        if name in settings and settings[name] not in harmless:
            raise ValueError(
                f"{path}: {name} is {settings[name]!r}, which is not supported; expected "
                f"{harmless[0]!r}"
            )
    for name in ("r", "lora_alpha"):
        if not isinstance(settings.get(name), int if name == "r" else int | float):
            raise ValueError(f"{path}: {name} must be a number, found {settings.get(name)!r}")
    if not targets:
        raise ValueError(
            f"{file} has no adapter of this model; {path.name} names the modules "
            f"{settings.get('target_modules')!r} of {settings.get('base_model_name_or_path')!r}"
        )
    rslora = bool(settings.get("use_rslora", False))
    return LoraConfig(settings["r"], float(settings["lora_alpha"]), targets, rslora)


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
