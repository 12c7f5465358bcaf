"""config.json of a pretrained model to our config, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from shatter.models.families import FAMILIES, Family, family_of
from shatter.models.transformer_config import Rope, TransformerConfig

_ACTIVATIONS = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "gelu_exact": ("gelu", "gelu_python"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}
_TOKENS = ("bos", "eos")
_NOT_IN_FOLDER = ("dtype", "remat", *_TOKENS)


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
      ValueError: if the family is unknown, a size is missing, or the settings ask for what our
        forward pass does not compute.
    """
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type is {kind!r}; the known families are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _refuse(settings, family)
    fields = {name: _setting(settings, family, name) for name in family.fields}
    fields |= family.fixed
    if fields.get("head_size") is None:
        heads = fields["num_heads"]
        if fields["width"] % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {fields['width']}")
        fields["head_size"] = fields["width"] // heads
    fields["num_kv_heads"] = fields.get("num_kv_heads") or fields["num_heads"]
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
        if settings.get(key, value) != value:
            raise ValueError(f"{key} must be {value!r}, found {settings[key]!r}: not supported")
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
    """The value of a field of ours, of the right type."""
    names = family.fields[field]
    found = [name for name in names if name in settings]
    if not found and field not in family.defaults:
        raise ValueError(f"{' or '.join(names)} is missing")
    value = settings[found[0]] if found else family.defaults[field]
    types: dict[str, Any] = {
        field.name: field.type for field in dataclasses.fields(TransformerConfig)
    }
    if types[field] in (int, int | None) and not isinstance(value, types[field]):
        raise ValueError(f"{found[0]} must be an integer, found {value!r}")
    return value


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
    if any(isinstance(value, dict) for value in parameters.values()):
        if "full_attention" not in parameters:
            raise ValueError(
                f"rope_parameters has {', '.join(parameters)}; only full_attention is supported"
            )
        parameters = parameters["full_attention"]
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
