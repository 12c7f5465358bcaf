"""Any config.json and generation_config.json give a config that computes, or an error."""

import json
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.models.families import FAMILIES
from shatter.models.pretrained_config import check_generation, read_config, write_config
from shatter.models.rope import Rope, cos_sin
from shatter.models.transformer_config import TransformerConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 100,
    "n_positions": 32,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 6,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaling(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": LLAMA3 | changes}


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1 to"),
        (LLAMA, {"num_hidden_layers": 10**12}, "num_hidden_layers must be an integer from 1 to"),
        (LLAMA, {"num_hidden_layers": 3.0}, "num_hidden_layers must be an integer from 1 to"),
        (LLAMA, {"hidden_size": None}, "hidden_size must be an integer from 1 to"),
        (LLAMA, {"num_attention_heads": True}, "num_attention_heads must be an integer from 1 to"),
        (LLAMA, {"num_key_value_heads": 0}, "num_key_value_heads must be an integer from 1 to"),
        (LLAMA, {"num_key_value_heads": 4}, "num_key_value_heads must divide num_attention_heads"),
        (LLAMA, {"head_dim": -2}, "head_dim must be an integer from 1 to 2147483647 or null"),
        (LLAMA, {"intermediate_size": None}, "intermediate_size must be an integer from 1 to"),
        (LLAMA, {"rms_norm_eps": math.nan}, "rms_norm_eps must be a number from 1e-20 to 1, found"),
        (LLAMA, {"rms_norm_eps": True}, "rms_norm_eps must be a number from 1e-20 to 1, found T"),
        (LLAMA, {"attention_bias": 0}, "attention_bias must be true or false, found 0"),
        (LLAMA, {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        (LLAMA, {"hidden_act": 5}, "hidden_act must be a text, found 5"),
        (LLAMA, {"hidden_act": ["silu"]}, "hidden_act must be a text, found ['silu']"),
        (LLAMA, {"model_type": ["llama"]}, "model_type is ['llama']; the known families are"),
        (LLAMA, {"layer_types": "full_attention"}, "layer_types must be a list of texts or null"),
        (LLAMA, {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
        (LLAMA, {"rope_theta": math.inf}, "rope_theta must be a number from 1 to 1e+15, found inf"),
        (LLAMA, {"rope_theta": "10000"}, "rope_theta must be a number from 1 to 1e+15"),
        (LLAMA, {"rope_parameters": []}, "rope_parameters must be an object of names and values"),
        (LLAMA, {"rope_parameters": {"rope_theta": 0.0}}, "rope_theta must be a number from 1 to"),
        (LLAMA, {"rope_parameters": {"full_attention": 1, "x": {}}}, "full_attention must be an"),
        (LLAMA, scaling(factor="8"), "factor must be a number from 0.001 to"),
        (LLAMA, scaling(factor=-8), "factor must be a number from 0.001 to"),
        (LLAMA, scaling(low_freq_factor=0), "low_freq_factor must be a number from 0.001 to"),
        (LLAMA, scaling(low_freq_factor=4.0), "low_freq_factor must be below high_freq_factor"),
        (LLAMA, scaling(rope_type={}), "rope_type must be a text, found {}"),
        (LLAMA, scaling(rope_type=3), "rope_type must be a text, found 3"),
        (LLAMA, scaling(original_max_position_embeddings=0.5), "original_max_position_embeddings"),
        (LLAMA, {"partial_rotary_factor": True}, "partial_rotary_factor must be a number from 0"),
        (LLAMA, {"bos_token_id": {}}, "bos_token_id must be a token id or a list of them or null"),
        (LLAMA, {"eos_token_id": [2, "</s>"]}, "eos_token_id must be a token id or a list of them"),
        (GPT2, {"n_inner": 0}, "n_inner must be an integer from 1 to 2147483647 or null, found 0"),
        (GPT2, {"n_positions": "32"}, "n_positions must be an integer from 1 to"),
        (GPT2, {"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a number from 1e-20 to 1"),
        (GPT2, {"scale_attn_weights": 1}, "scale_attn_weights must be True, found 1"),
        (GPT2, {"quantization_config": False}, "quantization_config must be None, found False"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_field_of_another_type_or_range(base: Any, changes: Any, message: str):
    read_config(base, {})
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(base | changes, {})


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id must be a token id or a list of them or null"),
        ({"eos_token_id": [2, None]}, "eos_token_id must be a token id or a list of them or null"),
        ({"bos_token_id": 1.0}, "bos_token_id must be a token id"),
        ({"pad_token_id": False}, "pad_token_id must be a token id"),
        ({"temperature": math.nan}, "temperature must be finite, found nan"),
        ({"sequence_bias": [[[3], -math.inf]]}, "sequence_bias must be finite, found"),
    ],
)
def test_settings_of_generation(generation: Any, message: str):
    for read in (check_generation, lambda generation: read_config(LLAMA, generation)):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(generation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2.0}, "num_layers must be an integer from 1 to"),
        ({"norm_epsilon": math.inf}, "norm_epsilon must be a number from 1e-20 to 1, found inf"),
        ({"norm_epsilon": math.nan}, "norm_epsilon must be a number from 1e-20 to 1, found nan"),
        ({"tied": None}, "tied must be true or false, found None"),
        ({"bos": -1}, "bos must be an integer from 0 on or null, found -1"),
        ({"eos": [2]}, r"eos must be a tuple of token ids, found \[2\]"),
        ({"eos": ("2",)}, "eos must be a token id or a list of them from 0 on"),
    ],
)
def test_our_own_config(changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocab_size": 5, "max_length": 6} | changes)


@pytest.mark.parametrize("theta", [1.0, 1e15])
@pytest.mark.parametrize("factor", [1e-3, 1e9])
@pytest.mark.parametrize("kind", ["none", "linear", "llama3"])
def test_angles_are_finite_at_the_ends_of_every_range(theta: float, factor: float, kind: Any):
    positions = jnp.array([[0, 1, 2**31 - 1]])
    for size in (2, 128):
        for low, high in [(1e-3, 1e9), (1.0, float(np.nextafter(1.0, 2.0)))]:
            rope = Rope(theta, kind, factor, low, high, 2**31 - 1)
            assert all(np.isfinite(part).all() for part in cos_sin(rope, positions, size))


KEYS = sorted(
    {name for family in FAMILIES.values() for names in family.fields.values() for name in names}
    | {name for family in FAMILIES.values() for name in family.required}
    | {*LLAMA3, "type", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"}
    | {"full_attention", "sliding_attention", "sliding_window_pattern", "rope_local_base_freq"}
    | {"original_max_position_embeddings", "partial_rotary_factor"}
    | {"model_type", "use_sliding_window", "sliding_window", "quantization_config"}
)
ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        [
            *("silu", "gelu_new", "linear", "llama3", "default", "full_attention", 10**400),
            ["sliding_attention"] * 3,
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=6,
)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(st.sampled_from(KEYS), ANY_VALUE, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["eos_token_id", "bos_token_id", "top_k"]), ANY_VALUE),
)
def test_any_values(kind: str, changes: dict[str, Any], generation: dict[str, Any]):
    values = (GPT2 if kind == "gpt2" else LLAMA) | {"model_type": kind} | changes
    if kind == "gemma3":
        values = changes | {"model_type": kind, "text_config": values}
    try:
        config = read_config(values, generation)
    except ValueError:
        return
    hash(config)
    for written in write_config(config, "float32"):
        json.dumps(written, allow_nan=False)
