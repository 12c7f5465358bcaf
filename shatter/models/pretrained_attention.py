"""Translates rotary positions and windows between config.json and `TransformerConfig`."""

from collections.abc import Mapping
from typing import Any

from shatter.models.fields import FLAG, SIZE, Field, check_fields
from shatter.models.rope import ROPE_FIELDS, Rope
from shatter.models.transformer_config import TransformerConfig

_SHARE = Field("number", 0.0, 1.0, optional=True)
ATTENTION_FIELDS = {
    "layer_types": Field("texts", optional=True),
    "use_sliding_window": FLAG._replace(optional=True),
    "sliding_window": Field("integer", optional=True),
    "sliding_window_pattern": SIZE,
    "rope_theta": ROPE_FIELDS["theta"],
    "rope_local_base_freq": ROPE_FIELDS["theta"],
    "rope_scaling": Field("object", optional=True),
    "rope_parameters": Field("object", optional=True),
    "partial_rotary_factor": _SHARE,
    "original_max_position_embeddings": SIZE,
}
"""Types and ranges of the fields of config.json that are read here."""

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
_MAX_LAYERS = 100_000
"""Of a model with windows, so that a damaged file cannot ask for a list of billions of layers."""

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_attention(settings: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads rotary positions, and which blocks have a window, in the older and newer spelling.

    Args:
      settings: the content of config.json, in which `ATTENTION_FIELDS` are checked.
      fields: the fields of `TransformerConfig` that are known already; "window" is one of them in
        families that have windows.

    Returns:
      The field rope of `TransformerConfig`, and in families with windows full_layers and
      local_theta, or the window None if no block has one.

    Raises:
      ValueError: if the settings ask for what our forward pass does not compute.
    """
    if "window" not in fields:
        _check_full(settings)
        return {"rope": _read_rope(settings, _FULL, settings.get("rope_theta", 10_000.0))}
    full_layers = _read_full_layers(settings, fields["num_layers"])
    rope = _read_rope(settings, _FULL, settings.get("rope_theta", 1_000_000.0))
    if len(full_layers) == fields["num_layers"]:
        return {"rope": rope, "window": None}
    local = _read_rope(settings, _SLIDING, settings.get("rope_local_base_freq", 10_000.0))
    if local.scaling != "none":
        raise ValueError(
            f"the rope type of {_SLIDING} must be 'default', found {local.scaling!r}: not supported"
        )
    return {"rope": rope, "full_layers": full_layers, "local_theta": local.theta}


def write_attention(config: TransformerConfig, *, has_windows: bool) -> dict[str, Any]:
    """Returns the fields of config.json that `read_attention` reads, in their older spelling.

    Args:
      config: the configuration of a transformer with rotary positions.
      has_windows: whether the family has windows.
    """
    assert config.rope is not None
    if not has_windows:
        return _write_rope(config.rope)
    is_full = [config.window is None or i in config.full_layers for i in range(config.num_layers)]
    return _write_rope(config.rope) | {
        "layer_types": [_FULL if full else _SLIDING for full in is_full],
        "sliding_window": config.max_length if config.window is None else config.window,
        "rope_local_base_freq": config.local_theta or config.rope.theta,
    }


def resolve_attention(config: TransformerConfig) -> dict[str, Any]:
    """Returns the fields for which other values stand for the same computation, in one form.

    Args:
      config: the configuration of the transformer.
    """
    rope, theta = config.rope, config.local_theta
    if rope is not None and config.window is not None and rope.scaling == "none":
        theta = theta or rope.theta
    return {
        "attention_size": config.attention_size or config.size_of_head,
        "rope": None if rope is None else _read_rope(_write_rope(rope), _FULL, rope.theta),
        "local_theta": theta,
    }


def _check_full(settings: Mapping[str, Any]) -> None:
    """Raises ValueError if a layer slides, in families of which we support full attention alone."""
    layers = settings.get("layer_types") or []
    unknown = [kind for kind in layers if kind != _FULL]
    if unknown:
        raise ValueError(f"layer_types has {unknown[0]!r}; only {_FULL!r} is supported")
    slides = settings.get("use_sliding_window") and settings.get("sliding_window", 4096) is not None
    if slides and not layers:
        raise ValueError(
            "use_sliding_window is true; only full attention is supported: set it to false if "
            f"documents stay within sliding_window = {settings.get('sliding_window', 4096)} tokens"
        )


def _read_full_layers(settings: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Returns the numbers of the blocks without a window, by default every sixth."""
    layers = settings.get("layer_types")
    if num_layers > _MAX_LAYERS:
        raise ValueError(f"num_hidden_layers must be at most {_MAX_LAYERS}, found {num_layers}")
    if layers is None:
        pattern = settings.get("sliding_window_pattern", 6)
        return tuple(range(pattern - 1, num_layers, pattern))
    unknown = [kind for kind in layers if kind not in (_FULL, _SLIDING)]
    if unknown:
        raise ValueError(f"layer_types has {unknown[0]!r}; known are {_FULL!r} and {_SLIDING!r}")
    if len(layers) != num_layers:
        raise ValueError(
            f"layer_types must name the kind of each of the {num_layers} layers, found "
            f"{len(layers)} names"
        )
    return tuple(i for i, kind in enumerate(layers) if kind == _FULL)


def _read_rope(settings: Mapping[str, Any], kind: str, theta: float) -> Rope:
    """Reads the rotary positions of a kind of layers, `theta` of which may be stated elsewhere."""
    parameters = {"rope_theta": theta} | _rope_parameters(settings, kind)
    share = parameters.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if share not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor must be 1.0, found {share!r}: not supported")
    scaling = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters["rope_theta"])
    if scaling == "default":
        return Rope(theta=theta)
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    if scaling not in needed:
        raise ValueError(f"the rope type {scaling!r} is unknown; known are default, linear, llama3")
    missing = [name for name in needed[scaling] if name not in parameters]
    if missing:
        raise ValueError(f"{missing[0]} of the rope type {scaling!r} is missing")
    factor = float(parameters["factor"])
    if scaling == "linear":
        return Rope(theta=theta, scaling="linear", factor=factor)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    if not low < high:
        raise ValueError(f"low_freq_factor must be below high_freq_factor, found {low} and {high}")
    original = "original_max_position_embeddings"
    length = parameters.get(original, settings.get("max_position_embeddings"))
    return Rope(
        theta=theta,
        scaling="llama3",
        factor=factor,
        low_frequency_factor=float(low),
        high_frequency_factor=float(high),
        original_max_length=settings.get(original, length),
    )


def _rope_parameters(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Returns the checked parameters of rotary positions of the layers of a kind.

    Those in `rope_parameters` are nested by kind where there are several, and may be where there is
    one. Those in `rope_scaling` are of full attention.
    """
    given, scaling = settings.get("rope_parameters") or {}, settings.get("rope_scaling") or {}
    check_fields(given, _ROPE_FIELDS)
    check_fields(scaling, _ROPE_FIELDS)
    is_nested = kind == _SLIDING or any(isinstance(value, dict) for value in given.values())
    if given and is_nested and _FULL not in given:
        raise ValueError(f"rope_parameters has {', '.join(given)}; {_FULL} is missing")
    if is_nested:
        check_fields(given, dict.fromkeys((_FULL, _SLIDING), Field("object", optional=True)))
        given = given.get(kind) or {}
        check_fields(given, _ROPE_FIELDS)
    return {**given, **(scaling if kind == _FULL else {})}


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
