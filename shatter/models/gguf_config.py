"""Translates the settings of a GGUF file to the config.json of a Hugging Face folder."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from shatter.models.fields import SIZE, Field, check_fields, shown
from shatter.models.gguf_family import ARCHITECTURES, FREQUENCIES, KEYS
from shatter.models.gguf_header import Header
from shatter.models.gguf_weights import read_tensor
from shatter.models.rope import ROPE_FIELDS

_OPTIONAL = {
    "vocab_size": SIZE,
    "attention.head_count_kv": SIZE,
    "attention.key_length": SIZE,
    "attention.value_length": SIZE,
    "rope.dimension_count": SIZE,
    "rope.freq_base": ROPE_FIELDS["theta"],
    "rope.scaling.type": Field("text"),
    "rope.scaling.factor": ROPE_FIELDS["factor"],
}
_WINDOWS = {
    "sliding_window": ("attention.sliding_window", SIZE),
    "sliding_window_pattern": ("attention.sliding_window_pattern", SIZE),
    "rope_local_base_freq": ("rope.freq_base_swa", ROPE_FIELDS["theta"]),
}
"""As `KEYS`, of files of gemma3; where they are absent, the defaults of its folders hold."""

_REFUSED = {
    "expert_count": 0,
    "attention.sliding_window": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "rope.scale_linear": 1.0,
    "embedding_scale": 0.0,
    "residual_scale": 0.0,
    "logit_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}
"""Settings that our forward pass does not have, and the value that stands for none."""

_LAYERS_OF_27B = 62
"""Files do not have the scale of attention. Of all models of gemma3, that of 62 blocks alone
divides by the square root of the width over the number of heads, not of the size of a head."""

_END_TOKENS = ("eos", "eot", "eom")
"""The tokens that end a text or a turn of it; the first is the tokenizer's own."""


def read_settings(header: Header) -> dict[str, Any]:
    """Translates the settings of a GGUF file.

    Args:
      header: the header of the file.

    Returns:
      What config.json would hold, as `read_config` takes it.

    Raises:
      ValueError: with the key, if the architecture is unknown, a setting is missing, has another
        type or is out of its range, or asks for what our forward pass does not compute.
    """
    kind = header.settings.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture is {shown(kind)}; the known ones are {known}")
    parts = header.settings.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise ValueError(
            f"split.count is {shown(parts)}: the model is spread over several files; join them by "
            "`llama-gguf-split --merge`"
        )
    given = {
        key.removeprefix(f"{kind}."): value
        for key, value in header.settings.items()
        if key.startswith(f"{kind}.")
    }
    _check_keys(kind, given)
    settings = {name: given[key] for name, (key, _) in KEYS.items()}
    settings |= _heads(kind, given) | _tokens(header.settings)
    settings |= _rope(header, settings["head_dim"], given)
    if "token_embd.weight" not in header.tensors:
        raise ValueError("token_embd.weight is missing")
    rows = header.tensors["token_embd.weight"].shape[0]
    return settings | {
        "model_type": ARCHITECTURES[kind],
        "vocab_size": given.get("vocab_size", rows),
        **_own_settings(kind, given),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }


def _own_settings(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in which the architectures differ."""
    if kind != "gemma3":
        return {"hidden_act": "silu"}
    size = given["attention.key_length"]
    if given["block_count"] == _LAYERS_OF_27B:
        size = given["embedding_length"] // given["attention.head_count"]
    settings = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": size}
    return settings | {name: given[key] for name, (key, _) in _WINDOWS.items() if key in given}


def _check_keys(kind: str, given: Mapping[str, Any]) -> None:
    fields = dict(KEYS.values()) | _OPTIONAL
    needed, refused = [key for key, _ in KEYS.values()], dict(_REFUSED)
    if kind == "gemma3":
        fields |= dict(_WINDOWS.values())
        needed += ["attention.key_length", "attention.sliding_window"]
        del refused["attention.sliding_window"]
    check_fields(
        {f"{kind}.{key}": value for key, value in given.items()},
        {f"{kind}.{key}": field for key, field in fields.items()},
    )
    for key in needed:
        if key not in given:
            raise ValueError(f"{kind}.{key} is missing")
    for key, none in refused.items():
        if key in given and not np.array_equal(given[key], none):
            found = shown(given[key])
            raise ValueError(f"{kind}.{key} must be {none!r} or absent, found {found}")


def _heads(kind: str, given: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of heads of keys and values, and the size of a head."""
    heads, width = given["attention.head_count"], given["embedding_length"]
    if "attention.key_length" not in given and width % heads:
        raise ValueError(
            f"{kind}.attention.head_count must divide {kind}.embedding_length, found {heads} and "
            f"{width}"
        )
    size = given.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if given.get(key, size) != size:
            raise ValueError(f"{kind}.{key} must be {size}, the size of a head, found {given[key]}")
    return {"head_dim": size, "num_key_value_heads": given.get("attention.head_count_kv", heads)}


def _tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ids of the tokens that begin and end a text."""
    keys = {role: f"tokenizer.ggml.{role}_token_id" for role in ("bos", *_END_TOKENS)}
    check_fields(settings, dict.fromkeys(keys.values(), Field("integer", 0, 2**31 - 1)))
    ends = [settings[keys[role]] for role in _END_TOKENS if keys[role] in settings]
    return {"bos_token_id": settings.get(keys["bos"]), "eos_token_id": list(dict.fromkeys(ends))}


def _rope(header: Header, head_size: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of rotary positions."""
    theta = float(given.get("rope.freq_base", 10_000.0))
    kind, factor = given.get("rope.scaling.type", "none"), given.get("rope.scaling.factor", 1.0)
    scaling: dict[str, Any] | None = None
    if kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type is {shown(kind)}; the known ones are none, linear")
    if kind == "linear":
        scaling = {"rope_type": "linear", "factor": float(factor)}
    if FREQUENCIES in header.tensors:
        scaling = _llama3_scaling(header, head_size, theta)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3_scaling(header: Header, head_size: int, theta: float) -> dict[str, Any]:
    """Finds the scaling of Llama 3 whose factors are in a tensor.

    The file has the divisors of the frequencies and not the numbers that they come from. All
    releases of Llama 3 share those numbers except for the largest divisor.
    """
    found = np.asarray(read_tensor(header, FREQUENCIES), np.float64)
    factor, low, high, length = float(found.max()), 1.0, 4.0, 8192
    turns = length * theta ** (-np.arange(0, head_size, 2) / head_size) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    with np.errstate(all="ignore"):
        expected = 1 / ((1 - share) / factor + share)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise ValueError(
            f"{FREQUENCIES}: expected the divisors of Llama 3 for {len(expected)} frequencies "
            f"(low_freq_factor 1, high_freq_factor 4, 8192 positions), found {shown(found)}"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
