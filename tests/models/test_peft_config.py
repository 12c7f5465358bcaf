"""adapter_config.json: settings that change the adapters and are not supported are refused."""

import json
import math
import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.models import LoraConfig, TransformerConfig, init_lora, load_lora, save_lora
from shatter.models import transformer as make
from shatter.models.peft_config import read_peft_config

numpy = pytest.importorskip("safetensors.numpy", reason="it is an extra")

CONFIG = TransformerConfig(
    vocab_size=9, max_length=8, width=4, num_layers=2, num_heads=2, tied=True, head_bias=False
)
LORA = LoraConfig(rank=2, alpha=3.0, targets=("qkv", "mlp_out"))
PEFT = {
    "task_type": "CAUSAL_LM",
    "peft_type": "LORA",
    "auto_mapping": None,
    "peft_version": "0.18.1",
    "base_model_name_or_path": "org/name",
    "revision": "main",
    "inference_mode": True,
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": None,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": "gaussian",
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "trainable_token_indices": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "use_dora": False,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "qalora_group_size": 16,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "arrow_config": None,
    "ensure_weight_tying": False,
}
"""The file as PEFT 0.18 writes it."""


def test_what_peft_writes_is_read():
    found = read_peft_config(PEFT)
    assert (found.rank, found.alpha, found.use_rslora, found.base) == (4, 8.0, False, "org/name")
    least = {"peft_type": "LORA", "r": 4, "lora_alpha": 0.5, "use_rslora": True}
    assert read_peft_config(least)[:3] == (4, 0.5, True)
    read_peft_config(PEFT | {"target_modules": "all-linear", "a_field_of_the_future": None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported; expected null, false or"),
        ({"bias": "lora_only"}, "bias must be 'none' or None, found 'lora_only': not supported"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"layers_to_transform": [0, 1]}, "layers_to_transform is [0, 1]"),
        ({"layers_to_transform": 0}, "layers_to_transform is 0"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is {'q_proj': 8}"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is [[0, 2], [1, 3]]"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is [5, 6]"),
        ({"target_parameters": ["mlp.gate"]}, "target_parameters is ['mlp.gate']"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"megatron_config": {"a": 1}}, "megatron_config is {'a': 1}"),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future is 1, which is not supported"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights must be True or False or None or"),
        ({"init_lora_weights": 1}, "init_lora_weights must be True or False or None or"),
        ({"peft_type": ["LORA"]}, "peft_type must be 'LORA', found ['LORA']: not supported"),
        ({"task_type": "SEQ_CLS"}, "task_type must be 'CAUSAL_LM' or None, found 'SEQ_CLS'"),
        ({"r": True}, "r must be an integer from 1 to 2147483647, found True"),
        ({"r": 0}, "r must be an integer from 1 to 2147483647, found 0"),
        ({"r": "8"}, "r must be an integer from 1 to 2147483647, found '8'"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a number from 1e-06 to 1000000000, found n"),
        ({"lora_alpha": math.inf}, "lora_alpha must be a number from 1e-06 to 1000000000, found i"),
        ({"lora_alpha": False}, "lora_alpha must be a number from 1e-06 to 1000000000, found F"),
        ({"use_rslora": "false"}, "use_rslora must be true or false or null, found 'false'"),
        ({"use_rslora": 1}, "use_rslora must be true or false or null, found 1"),
        ({"lora_dropout": -0.1}, "lora_dropout must be a number from 0 to 1 or null, found -0.1"),
        ({"fan_in_fan_out": []}, "fan_in_fan_out must be true or false or null, found []"),
        ({"target_modules": 5}, "target_modules must be a list of texts or null, found 5"),
        ({"target_modules": ["q", 5]}, "target_modules must be a list of texts or null, found"),
        ({"base_model_name_or_path": {}}, "base_model_name_or_path must be a text or null"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_peft_config(PEFT | changes)


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_missing(name: str):
    with pytest.raises(ValueError, match=f"^{name} is missing$"):
        read_peft_config({key: value for key, value in PEFT.items() if key != name})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(PEFT)), VALUES, min_size=1, max_size=3))
def test_any_values(changes: dict[str, Any]):
    try:
        found = read_peft_config(PEFT | changes)
    except ValueError:
        return
    assert LoraConfig(found.rank, found.alpha, ("query",), found.use_rslora).scale > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shapes = jax.eval_shape(make(CONFIG).init, jax.random.key(0))
    own = jax.eval_shape(partial(init_lora, lora=LORA), jax.random.key(0), shapes)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), own)
    save_lora(tmp_path / "own", CONFIG, ones, LORA)
    return tmp_path / "own"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


LAYERS = [f"transformer.h.{i}.{name}" for i in (0, 1) for name in ("attn.c_attn", "mlp.c_proj")]


@pytest.mark.parametrize(
    "names",
    [
        ["attn.c_attn", "mlp.c_proj"],
        ["c_attn", "mlp.c_proj"],
        LAYERS,
        ["c_attn", "mlp.c_proj", "lm_head"],
        "all-linear",
        None,
    ],
    ids=str,
)
def test_modules_that_the_config_names(names: Any, folder: Path):
    edit(folder, target_modules=names)
    assert load_lora(folder, CONFIG)[1] == LORA


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["c_attn"]}, "has a tensor of 'transformer.h.0.mlp.c_proj', but targ"),
        ({"target_modules": []}, "has a tensor of 'transformer.h.0.mlp.c_proj', but target_modu"),
        (
            {"target_modules": ["c_attn", "mlp.c_proj", "c_fc"]},
            "has no tensor of 'transformer.h.0.mlp.c_fc', but target_modules .* names it",
        ),
        ({"exclude_modules": ["c_attn"]}, "has a tensor of 'transformer.h.0.attn.c_attn', but"),
        ({"r": 10**9}, r"has shape \(2, 4\), expected \(1000000000, 4\)"),
        ({"use_dora": True}, "adapter_config.json: use_dora is True"),
    ],
    ids=str,
)
def test_a_config_of_other_tensors(changes: dict[str, Any], message: str, folder: Path):
    """PEFT would ignore tensors of modules that are not named, and initialise missing ones."""
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_lora(folder, CONFIG)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((12, 2), np.nan, np.float32), "holds 24 values of 24 that are NaN or infinite"),
        (np.ones((12, 2), np.int16), "is stored as I16; expected one of F64, F32, F16, BF16"),
    ],
    ids=["nan", "integers"],
)
def test_tensors_are_finite_floats(value: np.ndarray, message: str, folder: Path):
    file = folder / "adapter_model.safetensors"
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
    numpy.save_file(numpy.load_file(file) | {name: value}, file)
    with pytest.raises(ValueError, match=f"adapter_model.safetensors: {re.escape(name)} {message}"):
        load_lora(folder, CONFIG)


def test_adapters_that_are_not_finite_are_not_saved(folder: Path):
    before = (folder / "adapter_model.safetensors").read_bytes()
    adapters, lora = load_lora(folder, CONFIG)
    spoilt = jax.tree.map(lambda leaf: leaf * np.inf, adapters)
    with pytest.raises(ValueError, match=r"lora_A.weight holds 8 values of 8 that are NaN or inf"):
        save_lora(folder, CONFIG, spoilt, lora)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_every_file_is_as_readable_as_the_others(folder: Path):
    expected = 0o666 & ~_umask()
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {expected}


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
