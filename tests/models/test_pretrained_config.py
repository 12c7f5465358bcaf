import dataclasses
import re
from typing import Any

import pytest

from shatter.models.families import FAMILIES, family_of
from shatter.models.pretrained_config import read_config, write_config
from shatter.models.rope import Rope
from shatter.models.transformer_config import TransformerConfig

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 100,
    "n_positions": 32,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 6,
    "bos_token_id": 4,
    "eos_token_id": 5,
}
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
QWEN2 = LLAMA | {"model_type": "qwen2"}
QWEN3 = LLAMA | {"model_type": "qwen3"}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 16}

CONFIG = TransformerConfig(
    vocab_size=100,
    max_length=64,
    width=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_size=4,
    mlp_width=40,
    norm="rms",
    activation="silu",
    gated=True,
    rope=Rope(),
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    head_bias=False,
    bos=1,
    eos=(2,),
)
"""The configuration of `LLAMA`, with its defaults."""

GEMMA3_CONFIG = dataclasses.replace(
    CONFIG,
    num_layers=7,
    head_size=256,
    activation="gelu",
    rope=Rope(1e6),
    qk_norm=True,
    post_norms=True,
    norm_offset=True,
    scaled_embedding=True,
    attention_size=256,
    window=8,
    full_layers=(5,),
    local_theta=1e4,
    tied=True,
    bos=2,
    eos=(1,),
)
"""The configuration of `GEMMA3`, with its defaults."""


def read(settings: dict[str, Any], **generation: Any) -> TransformerConfig:
    return read_config(settings, generation)


def test_gpt2():
    expected = TransformerConfig(
        vocab_size=100,
        max_length=32,
        width=24,
        num_layers=3,
        num_heads=6,
        num_kv_heads=6,
        head_size=4,
        mlp_width=96,
        norm_epsilon=1e-5,
        tied=True,
        head_bias=False,
        bos=4,
        eos=(5,),
    )
    assert read(GPT2) == expected
    newer = {"n_positions": "max_position_embeddings", "n_embd": "hidden_size"} | {
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }
    assert read({newer.get(key, key): value for key, value in GPT2.items()}) == expected


@pytest.mark.parametrize(
    "settings, changes",
    [
        (LLAMA, {}),
        (LLAMA | {"attention_bias": True}, {"qkv_bias": True, "attention_out_bias": True}),
        (LLAMA | {"mlp_bias": True, "tie_word_embeddings": True}, {"mlp_bias": True, "tied": True}),
        (QWEN2, {"qkv_bias": True, "bos": None, "eos": ()}),
        (QWEN3, {"qk_norm": True, "head_size": 128, "bos": None, "eos": ()}),
        (
            QWEN3 | {"head_dim": 10, "eos_token_id": 7},
            {"qk_norm": True, "head_size": 10, "bos": None, "eos": (7,)},
        ),
        (LLAMA | {"num_key_value_heads": None}, {"num_kv_heads": 6}),
        (LLAMA | {"head_dim": None, "hidden_act": "gelu"}, {"activation": "gelu_exact"}),
        (LLAMA | {"hidden_act": "gelu_pytorch_tanh"}, {"activation": "gelu"}),
    ],
)
def test_rotary_families(settings: dict[str, Any], changes: dict[str, Any]):
    config = read(settings)
    assert config == dataclasses.replace(CONFIG, **changes)
    assert family_of(config) == settings["model_type"]


KINDS = ["sliding_attention", "full_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize(
    "settings, changes",
    [
        ({}, {}),
        ({"final_logit_softcapping": None, "use_bidirectional_attention": None}, {}),
        ({"sliding_window_pattern": 3}, {"full_layers": (2, 5)}),
        ({"sliding_window_pattern": 9}, {"full_layers": ()}),
        ({"layer_types": KINDS, "sliding_window_pattern": 3}, {"full_layers": (1, 3, 5, 6)}),
        (
            {"layer_types": KINDS[1:2] * 7},
            {"window": None, "full_layers": (), "local_theta": None},
        ),
        (
            {"rope_theta": 500, "rope_local_base_freq": 20},
            {"rope": Rope(500.0), "local_theta": 20.0},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 500},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 20},
                }
            },
            {"rope": Rope(500.0, "linear", 8.0), "local_theta": 20.0},
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope": Rope(1e6, "linear", 8.0)},
        ),
        (
            {"query_pre_attn_scalar": 24, "head_dim": 8, "attention_bias": True},
            {
                "attention_size": 24,
                "head_size": 8,
                "qkv_bias": True,
                "attention_out_bias": True,
            },
        ),
    ],
    ids=str,
)
def test_gemma_3(settings: dict[str, Any], changes: dict[str, Any]):
    config = read(GEMMA3 | settings)
    assert config == dataclasses.replace(GEMMA3_CONFIG, **changes)
    assert family_of(config) == "gemma3_text"
    written, generation = write_config(config, "float32")
    assert read_config(written, generation) == config
    assert written["hidden_activation"] == "gelu_pytorch_tanh"


def test_gemma_3_of_text_and_images():
    """The sizes that its file leaves out are the family's."""
    text = {key: GEMMA3[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    whole = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    config = read(whole | {"vision_config": {"hidden_size": 8}})
    sizes = {"vocab_size": 262_208, "max_length": 131_072, "num_heads": 8, "num_kv_heads": 4}
    expected = dataclasses.replace(GEMMA3_CONFIG, **sizes, window=4096, eos=(1, 106))
    assert config == expected
    for wrong, message in [
        ({}, "text_config is missing"),
        ({"text_config": 1}, "text_config must"),
    ]:
        with pytest.raises(ValueError, match=message):
            read({"model_type": "gemma3"} | wrong)


@pytest.mark.parametrize(
    "older, newer, rope",
    [
        ({"rope_theta": 500}, {"rope_parameters": {"rope_theta": 500.0}}, Rope(theta=500.0)),
        (
            {"rope_theta": 500.0, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
            Rope(theta=500.0),
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
            Rope(scaling="linear", factor=2.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3, **ORIGINAL}},
            {
                "layer_types": ["full_attention"] * 3,
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "llama3",
                        "rope_theta": 5e5,
                        **LLAMA3,
                        **ORIGINAL,
                    }
                },
            },
            Rope(5e5, "llama3", 8.0, 1.5, 4.0, 16),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 10_000.0},
            Rope(1e4, "llama3", 8.0, 1.5, 4.0, 64),
        ),
    ],
)
def test_both_spellings(older: dict[str, Any], newer: dict[str, Any], rope: Rope):
    expected = dataclasses.replace(CONFIG, rope=rope)
    assert read(LLAMA | older | {"torch_dtype": "bfloat16"}) == expected
    assert read(LLAMA | newer | {"dtype": "bfloat16"}) == expected


def test_token_ids():
    """They may be a list or missing; generation_config.json takes precedence; all are known ids."""
    assert read(LLAMA | {"eos_token_id": [7, 9]}).eos == (7, 9)
    assert read(LLAMA | {"eos_token_id": None, "bos_token_id": None}).eos == ()
    assert read(LLAMA | {"eos_token_id": None, "bos_token_id": None}).bos is None
    assert read(LLAMA, eos_token_id=[3, 4]).eos == (3, 4)
    assert read(LLAMA, eos_token_id=[3, 100]).eos == (3,)
    assert read({**GPT2, "bos_token_id": 50256}).bos is None


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10.0}
SCALED = {"rope_parameters": {"full_attention": SCALED, "sliding_attention": SCALED}}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; the known families are gpt2, llama, qw"),
        ({}, "model_type is None"),
        ({"model_type": "llama"}, "vocab_size is missing"),
        (GPT2 | {"n_embd": "24"}, "n_embd must be an integer from 1 to 2147483647, found '24'"),
        (GPT2 | {"n_head": 5}, "5 attention heads do not divide the width 24"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights must be True, found False"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention must be False, found True"),
        (GPT2 | {"activation_function": "mish"}, "activation 'mish' is unknown; known are gelu_n"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config must be None, found"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope type 'dynamic' is unk"),
        (LLAMA | {"rope_parameters": {"rope_type": "yarn"}}, "known are default, linear, llama3"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, "factor of the rope type 'linear' is"),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor of the"),
        (LLAMA | {"rope_parameters": {"sliding_attention": {}}}, "full_attention is missing"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0, found 0.5"),
        (GEMMA3 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping must be None"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be None, found"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention must be F"),
        (GEMMA3 | {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers must be at most 100000"),
        (GEMMA3 | {"sliding_window": None}, "sliding_window must be an integer from 1 to"),
        (GEMMA3 | {"sliding_window_pattern": 0}, "sliding_window_pattern must be an integer"),
        (GEMMA3 | {"layer_types": KINDS[:6]}, "kind of each of the 7 layers, found 6 names"),
        (GEMMA3 | {"layer_types": ["chunked"] * 7}, "layer_types has 'chunked'; known are '"),
        (GEMMA3 | {"rope_parameters": {"sliding_attention": {}}}, "full_attention is missing"),
        (GEMMA3 | {"rope_parameters": {"rope_theta": 5.0}}, "full_attention is missing"),
        (GEMMA3 | SCALED, "the rope type of sliding_attention must be 'default', found 'linear'"),
        (QWEN2 | {"use_sliding_window": True}, "use_sliding_window is true; only full attention"),
        (QWEN3 | {"layer_types": ["sliding_attention"]}, "'sliding_attention'; only 'full"),
    ],
)  # fmt: skip
def test_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(settings)


def test_sliding_windows_out_of_use_are_no_matter():
    """Qwen 2.5 has them switched off."""
    window = {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1}
    assert read(QWEN2 | window) == read(QWEN2)
    full = {"use_sliding_window": True, "layer_types": ["full_attention"] * 3}
    assert read(QWEN2 | full) == read(QWEN2)


@pytest.mark.parametrize(
    "settings",
    [
        GPT2,
        GPT2 | {"tie_word_embeddings": False, "n_inner": 30, "activation_function": "relu"},
        LLAMA,
        LLAMA | {"attention_bias": True, "eos_token_id": [3, 4], "bos_token_id": None},
        LLAMA | {"rope_scaling": {"rope_type": "llama3", **LLAMA3, **ORIGINAL}},
        LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "hidden_act": "gelu"},
        QWEN2 | {"tie_word_embeddings": True},
        QWEN3 | {"head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-3},
    ],
)
def test_write_is_the_inverse(settings: dict[str, Any]):
    config = read(settings)
    written, generation = write_config(config, "bfloat16")
    assert read_config(written, generation) == config
    assert read_config(written, {}) == config
    assert written["model_type"] == settings["model_type"]
    assert written["architectures"] == [FAMILIES[settings["model_type"]].architecture]
    assert written["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"rope": None}, "num_kv_heads = 2"),
        ({"norm": "layer"}, "norm = 'layer'"),
        ({"gated": False}, "gated = False"),
        ({"head_bias": True}, "head_bias = True"),
        ({"attention_out_bias": True}, "qkv_bias = False"),
        ({"qk_norm": True, "qkv_bias": True}, "qkv_bias = True"),
        ({"qkv_bias": True, "mlp_bias": True}, "mlp_bias = True"),
        ({"window": 4}, "window = 4"),
        ({"attention_size": 5}, "attention_size = 5"),
        ({"scaled_embedding": True}, "scaled_embedding = True"),
        ({"post_norms": True}, "post_norms = True"),
        ({"norm_offset": True}, "qk_norm = False"),
    ],
)
def test_what_no_family_has(changes: dict[str, Any], field: str):
    with pytest.raises(ValueError, match=f"no family of pretrained models has {field}"):
        write_config(dataclasses.replace(CONFIG, **changes), "float32")


def test_didactic_transformer():
    """Its head has a bias, which no family has."""
    config = TransformerConfig(vocab_size=9, max_length=8)
    with pytest.raises(
        ValueError, match=r"head_bias = True.*in gpt2, the nearest, it would be False"
    ):
        write_config(config, "float32")
    for known in ({"head_bias": False}, {"tied": True}):
        settings, _ = write_config(dataclasses.replace(config, **known), "float32")
        assert settings["n_inner"] == 256


def test_settings_of_the_computation_do_not_matter():
    config = dataclasses.replace(
        CONFIG, dtype="bfloat16", fused_attention=True, remat=True, unrolled_layers=0
    )
    settings, generation = write_config(config, "float32")
    assert read_config(settings, generation) == CONFIG
