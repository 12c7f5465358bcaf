"""The contents of files of weights, the files of an index, and how both are written."""

import json
import os
import re
import stat
import time
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import Rope, TransformerConfig, load_pretrained, save_pretrained, transformer
from shatter.models.saving import write_tensors

pytest.importorskip("safetensors", reason="it is an extra")
from safetensors.numpy import load_file, save_file

LLAMA = TransformerConfig(
    vocab_size=7,
    max_length=8,
    width=4,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_size=2,
    mlp_width=6,
    norm="rms",
    activation="silu",
    gated=True,
    rope=Rope(),
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    head_bias=False,
)
GPT2 = TransformerConfig(
    vocab_size=7, max_length=8, width=4, num_layers=1, num_heads=2, tied=True, head_bias=False
)
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


@cache
def shapes(config: TransformerConfig) -> Any:
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def params_of(config: TransformerConfig) -> Any:
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.array(rng.standard_normal(leaf.shape), jnp.float32)
    return jax.tree.map(draw, shapes(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", LLAMA, params_of(LLAMA))
    return tmp_path / "model"


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def put(folder: Path, **tensors: np.ndarray) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["int8", "int32", "uint8", "bool"])
def test_integers_are_refused_whatever_is_asked_for(kind: str, dtype: str | None, folder: Path):
    put(folder, **{UP: np.ones((6, 4), kind)})
    name = {"int8": "I8", "int32": "I32", "uint8": "U8", "bool": "BOOL"}[kind]
    message = rf"model.safetensors: {UP} is stored as {name}; expected one of F64, F32, F16, BF16"
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float, stored: str, dtype: str | None, folder: Path):
    values = np.ones((6, 4), stored)
    values[3, 1] = values[5, 0] = bad
    put(folder, **{UP: values})
    message = rf"model.safetensors: {UP} holds 2 values of 24 that are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder, dtype=dtype)


def test_the_head_of_a_tied_model_that_is_not_finite(tmp_path: Path):
    save_pretrained(tmp_path, GPT2, params_of(GPT2))
    put(tmp_path, **{"lm_head.weight": np.full((7, 4), np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"lm_head.weight holds 28 values of 28 that are NaN"):
        load_pretrained(tmp_path)


def test_weights_beyond_the_range_of_a_type(folder: Path):
    put(folder, **{NORM: np.array([1, 2, 7e4, 1], np.float32)})
    assert load_pretrained(folder)[1]["params"]["final_norm"]["scale"][2] == np.float32(7e4)
    message = rf"{NORM} holds 1 values of 4 beyond the range of float16: load the model in a wider"
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder, dtype="float16")
    put(folder, **{NORM: np.array([1, 2, 1e300, 1])})  # float64, which jax would make float32
    with pytest.raises(
        ValueError, match=rf"{NORM} holds 1 values of 4 beyond the range of float32"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "nonsense", "bool"])
def test_a_type_that_is_not_of_weights(dtype: str, folder: Path):
    with pytest.raises(ValueError, match=f"dtype must be a float type .*, found '{dtype}'; known"):
        load_pretrained(folder, dtype=dtype)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path):
    params = params_of(GPT2)
    blocks = params["params"]["blocks"]
    kernel = blocks["mlp_out"]["kernel"]
    for bad, message in [
        (
            kernel.at[0, 1, 2].set(jnp.nan),
            "blocks/mlp_out/kernel holds 1 values of 64 that are NaN",
        ),
        (kernel.astype(int), "blocks/mlp_out/kernel has the type int32; expected a float type"),
    ]:
        changed = blocks | {"mlp_out": blocks["mlp_out"] | {"kernel": bad}}
        with pytest.raises(ValueError, match=message):
            save_pretrained(
                tmp_path / "x", GPT2, {"params": params["params"] | {"blocks": changed}}
            )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "../model.safetensors",
        "shards/../../model.safetensors",
        "/etc/model.safetensors",
        "..\\model.safetensors",
        "link/model.safetensors",
        "model.safetensors\0",
        "config.json",
        "",
        None,
        7,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_an_index_points_into_its_folder(place: Any, folder: Path):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "link").symlink_to(folder.parent)
    index = {"weight_map": dict.fromkeys(names, "model.safetensors") | {UP: place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = (
        f"index.json: {UP} is in {place!r}; expected the name of a .safetensors file in the folder"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pretrained(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path):
    """In the cache of the hub, the files of a snapshot are links to blobs outside of it."""
    snapshot, blobs = tmp_path / "snapshots" / "0" / "model", tmp_path / "blobs"
    save_pretrained(snapshot, LLAMA, params_of(LLAMA), max_shard_size=300)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../../blobs") / str(number))
    assert load_pretrained(snapshot)[0] == LLAMA


def test_a_tensor_in_two_files(tmp_path: Path):
    save_pretrained(tmp_path, LLAMA, params_of(LLAMA), max_shard_size=300)
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    tensors = load_file(first)
    name = sorted(tensors)[0]
    save_file(load_file(last) | {name: tensors[name] + 1}, last)
    message = f"{last.name}: {re.escape(name)} is also in .*{first.name}"
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (LLAMA, "num_hidden_layers", 10**9),
        (LLAMA, "num_hidden_layers", 22),
        (LLAMA, "hidden_size", 2**31 - 1),
        (LLAMA, "vocab_size", 10**9),
        (LLAMA, "intermediate_size", 10**9),
        (LLAMA, "head_dim", 2 * 10**9),
        (LLAMA, "num_attention_heads", 10**9),
        (GPT2, "n_layer", 10**9),
        (GPT2, "n_positions", 10**9),
        (GPT2, "n_inner", 10**9),
    ],
    ids=str,
)
def test_sizes_are_compared_with_the_files_before_anything_is_made(
    config: TransformerConfig, field: str, value: int, tmp_path: Path
):
    save_pretrained(tmp_path, config, params_of(config))
    edit(tmp_path / "config.json", **{field: value})
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"config.json: {field} is {value}, but the weights hold"):
        load_pretrained(tmp_path)
    assert time.monotonic() - start < 5


def test_sizes_whose_product_is_beyond_all_bounds(folder: Path):
    """Each size alone would fit the files, but their product does not."""
    edit(folder / "config.json", hidden_size=256, intermediate_size=256, num_attention_heads=128)
    with pytest.raises(ValueError, match=r"has shape \(4,\), expected \(256,\).*21 have another"):
        load_pretrained(folder)


def test_files_are_as_readable_as_the_umask_has_it(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(2)})
        save_pretrained(tmp_path / "model", LLAMA, params_of(LLAMA), max_shard_size=300)
        save_pretrained(tmp_path / "model", LLAMA, params_of(LLAMA))  # over another model too
    finally:
        os.umask(before)
    found = {file: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()}
    assert set(found.values()) == {0o640}
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750
