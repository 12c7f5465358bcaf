"""Translates between the config.json of pretrained models and `TransformerConfig`."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from shatter.models.families import FAMILIES, Family, family_of
from shatter.models.fields import Field, check_fields, shown
from shatter.models.pretrained_attention import (
    ATTENTION_FIELDS,
    read_attention,
    resolve_attention,
    write_attention,
)
from shatter.models.transformer_config import FIELDS, TransformerConfig

_ACTIVATIONS = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "gelu_exact": ("gelu", "gelu_python"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}
_TOKENS = ("bos", "eos")
_NOT_IN_FOLDER = ("dtype", "fused_attention", "remat", "unrolled_layers", *_TOKENS)
_IDS = Field("ids", optional=True)  # may be negative, because some files write -1 for no token
_OWN_FIELDS = FIELDS | {"activation": Field("text"), "bos": _IDS, "eos": _IDS}
"""Types and ranges in config.json of the fields that `TransformerConfig` has."""
_OTHER_FIELDS = ATTENTION_FIELDS | {"model_type": Field("text")}
_GENERATION_FIELDS = {f"{role}_token_id": _IDS for role in ("bos", "eos", "pad")}


def read_config(settings: Mapping[str, Any], generation: Mapping[str, Any]) -> TransformerConfig:
    """Translates a config.json in its older or newer spelling.

    Token ids are read from generation_config.json if it has them. Ids outside the vocabulary, which
    no model can emit, are left out.

    Args:
      settings: the content of config.json.
      generation: the content of generation_config.json; {} if there is none.

    Returns:
      The configuration, with `dtype` None.

    Raises:
      ValueError: if the family is unknown, a size is missing, a field has another type or is out of
        its range, or the settings ask for what our forward pass does not compute.
    """
    check_generation(generation)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        families = ", ".join(FAMILIES)
        raise ValueError(f"model_type is {shown(kind)}; the known families are {families}")
    family = FAMILIES[kind]
    if family.other_parts:
        settings = _text_settings(settings)
    check_fields(settings, _OTHER_FIELDS)
    _check_supported(settings, family)
    fields = {name: _setting(settings, family, name) for name in family.fields}
    fields |= family.fixed
    fields |= _sizes(fields) | _token_ids(fields, generation)
    fields["activation"] = _activation(fields["activation"])
    fields |= {"rope": None} if kind == "gpt2" else read_attention(settings, fields)
    return TransformerConfig(**fields)


def _text_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the part that reads text of a model of text and images."""
    if "text_config" not in settings:
        raise ValueError("text_config is missing")
    check_fields(settings, {"text_config": Field("object")})
    of_whole = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config")
    return settings["text_config"] | {name: settings[name] for name in of_whole if name in settings}


def _sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes that follow from others where config.json does not have them."""
    num_heads, width = fields["num_heads"], fields["width"]
    num_kv_heads = fields.get("num_kv_heads") or num_heads
    head_size = fields.get("head_size")
    if head_size is None:
        if width % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide the width {width}")
        head_size = width // num_heads
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_key_value_heads must divide num_attention_heads, found {num_kv_heads} "
            f"and {num_heads}"
        )
    return {
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "mlp_width": fields["mlp_width"] or 4 * width,
    }


def _token_ids(fields: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    tokens: dict[str, tuple[int, ...]] = {}
    for role in _TOKENS:
        ids = generation.get(f"{role}_token_id", fields[role])
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        tokens[role] = tuple(token for token in ids if 0 <= token < fields["vocab_size"])
    return {"bos": tokens["bos"][0] if tokens["bos"] else None, "eos": tokens["eos"]}


def _activation(name: str) -> str:
    known = {theirs: ours for ours, names in _ACTIVATIONS.items() for theirs in names}
    if name not in known:
        raise ValueError(f"the activation {name!r} is unknown; known are {', '.join(known)}")
    return known[name]


def check_generation(generation: Mapping[str, Any]) -> None:
    """Raises ValueError if a generation_config.json could not be read or written again.

    Args:
      generation: the content of generation_config.json.

    Raises:
      ValueError: with the name of a field that is not a token id as it should be, or that holds NaN
        or an infinity.
    """
    check_fields(generation, _GENERATION_FIELDS)
    for name, value in generation.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"{name} must be finite, found {shown(value)}") from error


def write_config(config: TransformerConfig, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Translates a configuration to a config.json that every version of transformers reads.

    Args:
      config: the configuration of the transformer.
      dtype: the name of the type of the stored parameters.

    Returns:
      The contents of config.json and of generation_config.json.

    Raises:
      ValueError: with the name of a field, if no family has such a transformer.
    """
    kind = family_of(config)
    family = FAMILIES[kind]
    tokens: dict[str, Any] = {}
    if config.bos is not None:
        tokens["bos_token_id"] = config.bos
    if config.eos:
        tokens["eos_token_id"] = config.eos[0] if len(config.eos) == 1 else list(config.eos)
    ours_resolved = _resolve(config)
    settings: dict[str, Any] = {"architectures": [family.architecture], "model_type": kind}
    for ours, (theirs, *_) in family.fields.items():
        if ours not in _TOKENS:
            settings[theirs] = ours_resolved[ours]
    activation = family.fields["activation"][0]
    names = _ACTIVATIONS[config.activation]
    usual = family.defaults["activation"]
    settings[activation] = usual if usual in names else names[0]
    settings |= {"bos_token_id": None, "eos_token_id": None} | tokens | {"torch_dtype": dtype}
    if config.rope is not None:
        settings |= write_attention(config, has_windows="window" in family.fields)

    read_again = _resolve(read_config(settings, tokens))
    for name, value in ours_resolved.items():
        if name not in _NOT_IN_FOLDER and value != read_again[name]:
            raise ValueError(
                f"no family of pretrained models has {name} = {value!r} beside the other fields "
                f"of this config: in {kind}, the nearest, it would be {read_again[name]!r}"
            )
    return settings, tokens


def _check_supported(settings: Mapping[str, Any], family: Family) -> None:
    """Raises ValueError if the settings ask for what our forward pass does not compute."""
    for key, value in {**family.required, "quantization_config": None}.items():
        stands_for_false = value is False and settings.get(key) is None
        if settings.get(key, value) is not value and not stands_for_false:  # 1 is not true
            found = shown(settings[key])
            raise ValueError(f"{key} must be {value!r}, found {found}: not supported")


def _setting(settings: Mapping[str, Any], family: Family, field: str) -> Any:
    """Returns the value of a field of `TransformerConfig`, or the family's default for it."""
    names = family.fields[field]
    name = next((name for name in names if name in settings), None)
    if name is None and field not in family.defaults:
        raise ValueError(f"{' or '.join(names)} is missing")
    if name is None:
        return family.defaults[field]
    may_be_null = field in _TOKENS or (field in family.defaults and family.defaults[field] is None)
    check_fields(settings, {name: _OWN_FIELDS[field]._replace(optional=may_be_null)})
    return settings[name]


def _resolve(config: TransformerConfig) -> dict[str, Any]:
    """Returns all fields by name, with sizes in place of the None that stands for a default."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return fields | {
        "num_kv_heads": config.kv_heads,
        "head_size": config.size_of_head,
        "mlp_width": config.hidden_width,
        "head_bias": config.head_bias and not config.tied,
        **resolve_attention(config),
    }
