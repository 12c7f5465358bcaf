"""config.json of a pretrained model to our config, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from shatter.models.families import FAMILIES, Family, family_of
from shatter.models.fields import FLAG, SIZE, Field, check_fields, shown
from shatter.models.transformer_config import FIELDS, ROPE_FIELDS, Rope, TransformerConfig

_ACTIVATIONS = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "gelu_exact": ("gelu", "gelu_python"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}
_TOKENS = ("bos", "eos")
_NOT_IN_FOLDER = ("dtype", "remat", *_TOKENS)
_IDS = Field("ids", optional=True)  # of any sign: -1 stands for no token in some files
_OWN_FIELDS = FIELDS | {"activation": Field("text"), "bos": _IDS, "eos": _IDS}
"""What config.json may hold where it spells a field of ours."""
_SHARE = Field("number", 0.0, 1.0, optional=True)
_OTHER_FIELDS = {
    "model_type": Field("text"),
    "layer_types": Field("texts", optional=True),
    "use_sliding_window": FLAG._replace(optional=True),
    "sliding_window": Field("integer", optional=True),
    "rope_theta": ROPE_FIELDS["theta"],
    "rope_scaling": Field("object", optional=True),
    "rope_parameters": Field("object", optional=True),
    "partial_rotary_factor": _SHARE,
    "original_max_position_embeddings": SIZE,
}
_ROPE_FIELDS = {
    "rope_theta": ROPE_FIELDS["theta"],
    "rope_type": Field("text"),
    "type": Field("text"),
    "factor": ROPE_FIELDS["factor"],
    "low_freq_factor": ROPE_FIELDS["low_frequency_factor"],
    "high_freq_factor": ROPE_FIELDS["high_frequency_factor"],
    "original_max_position_embeddings": SIZE,
    "partial_rotary_factor": _SHARE,
}
_GENERATION_FIELDS = {f"{role}_token_id": _IDS for role in ("bos", "eos", "pad")}


def read_config(settings: Mapping[str, Any], generation: Mapping[str, Any]) -> TransformerConfig:
    """Translates a config.json, in its older or newer spelling.

    Token ids are those of generation_config.json where it has them; ids outside the vocabulary,
    which no model can emit, are left out.

    Args:
      settings: of config.json.
      generation: of generation_config.json; {} where there is none.

    Returns:
      Our config, without a dtype of its own.

    Raises:
      ValueError: if the family is unknown, a size is missing, a field is of another type or out of
        its range, or the settings ask for what our forward pass does not compute.
    """
    check_generation(generation)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        families = ", ".join(FAMILIES)
        raise ValueError(f"model_type is {shown(kind)}; the known families are {families}")
    family = FAMILIES[kind]
    check_fields(settings, _OTHER_FIELDS)
    _refuse(settings, family)
    fields = {name: _setting(settings, family, name) for name in family.fields}
    fields |= family.fixed
    if fields.get("head_size") is None:
        heads = fields["num_heads"]
        if fields["width"] % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {fields['width']}")
        fields["head_size"] = fields["width"] // heads
    fields["num_kv_heads"] = fields.get("num_kv_heads") or fields["num_heads"]
    if fields["num_heads"] % fields["num_kv_heads"]:
        raise ValueError(
            f"num_key_value_heads must divide num_attention_heads, found {fields['num_kv_heads']} "
            f"and {fields['num_heads']}"
        )
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    known = {theirs: ours for ours, names in _ACTIVATIONS.items() for theirs in names}
    if fields["activation"] not in known:
        raise ValueError(
            f"the activation {fields['activation']!r} is unknown; known are {', '.join(known)}"
        )
    fields["activation"] = known[fields["activation"]]
    for role in _TOKENS:
        ids = generation.get(f"{role}_token_id", fields[role])
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        fields[role] = tuple(token for token in ids if 0 <= token < fields["vocab_size"])
    fields["bos"] = fields["bos"][0] if fields["bos"] else None
    return TransformerConfig(**fields, rope=None if kind == "gpt2" else _read_rope(settings))


def check_generation(generation: Mapping[str, Any]) -> None:
    """Refuses settings of generation_config.json that cannot be read, or not be written again.

    Args:
      generation: of generation_config.json.

    Raises:
      ValueError: naming the field that is no token id, or holds NaN or an infinity.
    """
    check_fields(generation, _GENERATION_FIELDS)
    for name, value in generation.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"{name} must be finite, found {shown(value)}") from error


def write_config(config: TransformerConfig, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Translates to config.json, in the spelling that every version of transformers reads.

    Args:
      config: of a transformer.
      dtype: of the stored parameters, by name.

    Returns:
      The settings of config.json and of generation_config.json.

    Raises:
      ValueError: if no family's folder can hold the transformer; it names the field.
    """
    kind = family_of(config)
    family = FAMILIES[kind]
    tokens: dict[str, Any] = {}
    if config.bos is not None:
        tokens["bos_token_id"] = config.bos
    if config.eos:
        tokens["eos_token_id"] = config.eos[0] if len(config.eos) == 1 else list(config.eos)
    resolved = _resolve(config)
    settings: dict[str, Any] = {"architectures": [family.architecture], "model_type": kind}
    for ours, (theirs, *_) in family.fields.items():
        if ours not in _TOKENS:
            settings[theirs] = resolved[ours]
    activation = family.fields["activation"][0]
    settings[activation] = _ACTIVATIONS[config.activation][0]
    settings |= {"bos_token_id": None, "eos_token_id": None} | tokens | {"torch_dtype": dtype}
    if config.rope is not None:
        settings |= _write_rope(config.rope)

    read = _resolve(read_config(settings, tokens))
    for name, value in resolved.items():
        if name not in _NOT_IN_FOLDER and value != read[name]:
            raise ValueError(
                f"no family of pretrained models has {name} = {value!r} beside the other fields "
                f"of this config: in {kind}, the nearest, it would be {read[name]!r}"
            )
    return settings, tokens


def _refuse(settings: Mapping[str, Any], family: Family) -> None:
    for key, value in {**family.required, "quantization_config": None}.items():
        if settings.get(key, value) is not value:  # 1 is not true
            found = shown(settings[key])
            raise ValueError(f"{key} must be {value!r}, found {found}: not supported")
    layers = settings.get("layer_types") or []
    unknown = [kind for kind in layers if kind != "full_attention"]
    if unknown:
        raise ValueError(f"layer_types has {unknown[0]!r}; only 'full_attention' is supported")
    slides = settings.get("use_sliding_window") and settings.get("sliding_window", 4096) is not None
    if slides and not layers:
        raise ValueError(
            "use_sliding_window is true; only full attention is supported: set it to false if "
            f"documents stay within sliding_window = {settings.get('sliding_window', 4096)} tokens"
        )


def _setting(settings: Mapping[str, Any], family: Family, field: str) -> Any:
    """The value of a field of ours, of the right type and in its range."""
    names = family.fields[field]
    found = [name for name in names if name in settings]
    if not found and field not in family.defaults:
        raise ValueError(f"{' or '.join(names)} is missing")
    if not found:
        return family.defaults[field]
    may_be_null = field in _TOKENS or (field in family.defaults and family.defaults[field] is None)
    check_fields(settings, {found[0]: _OWN_FIELDS[field]._replace(optional=may_be_null)})
    return settings[found[0]]


def _resolve(config: TransformerConfig) -> dict[str, Any]:
    """Every field, sizes that are left to their defaults included."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return fields | {
        "num_kv_heads": config.kv_heads,
        "head_size": config.size_of_head,
        "mlp_width": config.hidden_width,
        "head_bias": config.head_bias and not config.tied,
        "rope": None if config.rope is None else _read_rope(_write_rope(config.rope)),
    }


def _read_rope(settings: Mapping[str, Any]) -> Rope:
    """From `rope_theta` and `rope_scaling`, or `rope_parameters`, nested by layer type or not."""
    parameters = {**(settings.get("rope_parameters") or {}), **(settings.get("rope_scaling") or {})}
    check_fields(parameters, _ROPE_FIELDS)
    if any(isinstance(value, dict) for value in parameters.values()):
        if "full_attention" not in parameters:
            raise ValueError(
                f"rope_parameters has {', '.join(parameters)}; only full_attention is supported"
            )
        check_fields(parameters, {"full_attention": Field("object")})
        parameters = parameters["full_attention"]
        check_fields(parameters, _ROPE_FIELDS)
    parameters = {"rope_theta": settings.get("rope_theta", 10_000.0)} | parameters
    share = parameters.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if share not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor must be 1.0, found {share!r}: not supported")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters["rope_theta"])
    if kind == "default":
        return Rope(theta=theta)
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    if kind not in needed:
        raise ValueError(f"the rope type {kind!r} is unknown; known are default, linear, llama3")
    missing = [name for name in needed[kind] if name not in parameters]
    if missing:
        raise ValueError(f"{missing[0]} of the rope type {kind!r} is missing")
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        raise ValueError(
            f"low_freq_factor must be below high_freq_factor, found {parameters['low_freq_factor']}"
            f" and {parameters['high_freq_factor']}"
        )
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=float(parameters["factor"]))
    original = "original_max_position_embeddings"
    length = settings.get(
        original, parameters.get(original, settings.get("max_position_embeddings"))
    )
    return Rope(
        theta=theta,
        scaling="llama3",
        factor=float(parameters["factor"]),
        low_frequency_factor=float(parameters["low_freq_factor"]),
        high_frequency_factor=float(parameters["high_freq_factor"]),
        original_max_length=settings.get(original, length),
    )


def _write_rope(rope: Rope) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if rope.scaling != "none":
        scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if scaling and rope.scaling == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_frequency_factor,
            "high_freq_factor": rope.high_frequency_factor,
            "original_max_position_embeddings": rope.original_max_length,
        }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
