import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import Rope, TransformerConfig, transformer
from shatter.models.pretrained import find_pretrained, load_pretrained, save_pretrained
from shatter.models.tokenizer import load_tokenizer

pytest.importorskip("safetensors", reason="it is an extra")
tokenizers = pytest.importorskip("tokenizers", reason="it is an extra")
from safetensors.numpy import load_file, save_file  # noqa: E402

CONFIG = TransformerConfig(
    vocab_size=11,
    max_length=16,
    width=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=2,
    mlp_width=12,
    norm="rms",
    activation="silu",
    gated=True,
    rope=Rope(theta=100.0),
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    head_bias=False,
    bos=1,
    eos=(2, 3),
)
GPT2 = TransformerConfig(
    vocab_size=11,
    max_length=16,
    width=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_size=2,
    mlp_width=12,
    tied=True,
    head_bias=False,
)
GEMMA3 = dataclasses.replace(
    CONFIG,
    qk_norm=True,
    post_norms=True,
    norm_offset=True,
    scaled_embedding=True,
    attention_size=5,
    window=3,
    full_layers=(0,),
    local_theta=20.0,
    tied=True,
)
QUERY = "model.layers.1.self_attn.q_proj.weight"
HEAD = "lm_head.weight"


@cache
def shapes(config: TransformerConfig) -> Any:
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def random_params(config: TransformerConfig, dtype: Any = np.float32) -> Any:
    """All entries differ, so that no two of them can be mixed up unseen."""
    generator = np.random.Generator(np.random.PCG64(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape).astype(dtype)), shapes(config)
    )


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Changes the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def add_tokenizer(folder: Path, pieces: int = 11) -> None:
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(pieces)}, unk_token="w0")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))


def edit_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [
        leaf.dtype for leaf in jax.tree.leaves(expected)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG))
    return tmp_path / "model"


@pytest.mark.parametrize("config", [CONFIG, GPT2, GEMMA3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(config: TransformerConfig, dtype: str, tmp_path: Path):
    params = random_params(config, jnp.dtype(dtype))
    save_pretrained(tmp_path / "new" / "model", config, params)
    loaded_config, loaded, tokenizer = load_pretrained(str(tmp_path / "new" / "model"))
    assert loaded_config == config
    assert tokenizer is None
    assert_same(loaded, params)
    assert json.loads((tmp_path / "new/model/config.json").read_text())["torch_dtype"] == dtype
    assert sorted(os.listdir(tmp_path / "new")) == ["model"]  # no temporary folder is left


def test_layout(folder: Path):
    """Linear layers are stored [out, in], the heads of queries before those of keys and values."""
    leaves = random_params(CONFIG)["params"]
    tensors = load_file(folder / "model.safetensors")
    kernel = np.asarray(leaves["blocks"]["qkv"]["kernel"])[1]
    np.testing.assert_array_equal(tensors[QUERY], kernel[:, :4].reshape(8, 8).T)
    key = tensors[QUERY.replace("q_proj", "k_proj")]
    np.testing.assert_array_equal(key, kernel[:, 4:6].reshape(8, 4).T)
    gate_up = np.asarray(leaves["blocks"]["mlp_in"]["kernel"])[0]
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(up, gate_up[:, 1].T)
    assert tensors[HEAD].shape == (11, 8)


def test_layout_of_gpt2(tmp_path: Path):
    """Linear layers of GPT-2 are stored [in, out]."""
    params = random_params(GPT2)
    save_pretrained(tmp_path, GPT2, params)
    tensors = load_file(tmp_path / "model.safetensors")
    kernel = np.asarray(params["params"]["blocks"]["attention_out"]["kernel"])[1]
    np.testing.assert_array_equal(
        tensors["transformer.h.1.attn.c_proj.weight"], kernel.reshape(8, 8)
    )
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)
    assert HEAD not in tensors


def test_dtype(folder: Path):
    stored = load_pretrained(folder)[1]
    assert_same(
        load_pretrained(folder, dtype="bfloat16")[1],
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), stored),
    )
    with pytest.raises(ValueError, match="dtype must be a float type such as 'float32', found 'i"):
        load_pretrained(folder, dtype="int8")


def test_bfloat16_file_read_in_float32(tmp_path: Path):
    params = random_params(CONFIG, jnp.bfloat16)
    save_pretrained(tmp_path, CONFIG, params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert_same(load_pretrained(tmp_path, dtype="float32")[1], wide)


@pytest.mark.parametrize("max_shard_size", [1, 700, 10**9])
def test_sharded_is_unsharded(max_shard_size: int, tmp_path: Path):
    params = random_params(CONFIG)
    save_pretrained(tmp_path, CONFIG, params, max_shard_size=max_shard_size)
    files = sorted(file.name for file in tmp_path.glob("model*"))
    if max_shard_size == 10**9:
        assert files == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(
            leaf.nbytes for leaf in jax.tree.leaves(params)
        )
        assert sorted(set(index["weight_map"].values())) == files[:-1]
        for name, file in index["weight_map"].items():
            assert name in load_file(tmp_path / file)
        sizes = [sum(t.nbytes for t in load_file(tmp_path / f).values()) for f in files[:-1]]
        largest = max(
            tensor.nbytes for f in files[:-1] for tensor in load_file(tmp_path / f).values()
        )
        assert max(sizes) <= max(max_shard_size, largest)
    assert_same(load_pretrained(tmp_path)[1], params)


def test_missing_shard(tmp_path: Path):
    save_pretrained(tmp_path, CONFIG, random_params(CONFIG), max_shard_size=1500)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-0000\d.safetensors is missing; the"
    ):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: (t.pop(QUERY), t.pop(HEAD)),
            rf"model.safetensors: {QUERY} is missing, expected with shape \(8, 8\).*of 21 tensors 2"
            " are missing and 0 have another shape, and 0 are unexpected",
        ),
        (
            lambda t: t.update({HEAD: t[HEAD].T.copy(), QUERY: np.zeros((8, 4), np.float32)}),
            rf"{QUERY} has shape \(8, 4\), expected \(8, 8\).*0 are missing and 2 have another",
        ),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[QUERY]}),
            r"model.layers.2.mlp.up_proj.weight with shape \(8, 8\) is unexpected.*and 1 are une",
        ),
        (
            lambda t: t.update({HEAD: t[HEAD].astype(np.int8)}),
            "lm_head.weight is stored as I8; expected one of F64, F32, F16, BF16",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str, folder: Path):
    edit(folder, change)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load_pretrained(folder)


def test_error_names_the_shard(tmp_path: Path):
    save_pretrained(tmp_path, CONFIG, random_params(CONFIG), max_shard_size=1500)
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file(tensors | {name: np.zeros(3, np.float32)}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name}: {re.escape(name)} has shape \(3,\), exp"):
        load_pretrained(tmp_path)
    tensors.pop(name)
    save_file(tensors, shard)
    with pytest.raises(ValueError, match=rf"index.json: {re.escape(name)} is missing"):
        load_pretrained(tmp_path)


def test_buffers_are_passed_over(folder: Path, tmp_path: Path):
    expected = load_pretrained(folder)[1]
    inverse = {
        f"model.{place}rotary_emb.inv_freq": np.ones(1, np.float32)
        for place in ("", "layers.0.self_attn.")
    }
    edit(folder, lambda tensors: tensors.update(inverse))
    assert_same(load_pretrained(folder)[1], expected)

    params = random_params(GPT2)
    save_pretrained(tmp_path / "gpt2", GPT2, params)
    masks = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32),
        "transformer.h.1.attn.masked_bias": np.float32([1]),
    }
    edit(tmp_path / "gpt2", lambda tensors: tensors.update(masks))
    assert_same(load_pretrained(tmp_path / "gpt2")[1], params)


def test_prefix_may_be_left_out(tmp_path: Path):
    """The original file of GPT-2 leaves it out."""
    params = random_params(GPT2)
    save_pretrained(tmp_path, GPT2, params)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    save_file(bare, tmp_path / "model.safetensors")
    assert_same(load_pretrained(tmp_path)[1], params)


def test_head_of_a_tied_model(tmp_path: Path):
    params = random_params(GPT2)
    save_pretrained(tmp_path, GPT2, params)
    edit(tmp_path, lambda t: t.update({HEAD: t["transformer.wte.weight"]}))
    assert_same(load_pretrained(tmp_path)[1], params)
    edit(tmp_path, lambda t: t.update({HEAD: t["transformer.wte.weight"] + 1}))
    with pytest.raises(
        ValueError, match=r"lm_head.weight differs from transformer.wte.weight, but .*ties"
    ):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            lambda f: edit_config(f, model_type="mamba"),
            ValueError,
            "config.json: model_type is 'mamba'; the known families are gpt2, llama, qwen2, qwen3",
        ),
        (
            lambda f: edit_config(f, use_sliding_window=True),
            ValueError,
            "config.json: use_sliding_window is true",
        ),
        (
            lambda f: (f / "config.json").unlink(),
            FileNotFoundError,
            "config.json is missing; the folder has generation_config.json, model.safetensors",
        ),
        (
            lambda f: (f / "config.json").write_text("{"),
            ValueError,
            "config.json is not JSON",
        ),
        (
            lambda f: (f / "model.safetensors").unlink(),
            FileNotFoundError,
            "model.safetensors is missing; the folder has config.json",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            FileNotFoundError,
            "(pytorch_model.bin), which is not read because it can run any code: convert it where",
        ),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
            ValueError,
            "model.safetensors (23 bytes) is not a complete safetensors file",
        ),
        (
            lambda f: os.truncate(f / "model.safetensors", 3000),
            ValueError,
            "model.safetensors (3000 bytes) is not a complete safetensors file",
        ),
        (
            lambda f: (
                (f / "model.safetensors").unlink(),
                (f / "model.safetensors.index.json").write_text("{}"),
            ),
            ValueError,
            "index.json: expected a weight_map of names to files",
        ),
    ],
)
def test_damaged_folder(change: Any, error: type[Exception], message: str, folder: Path):
    change(folder)
    with pytest.raises(error, match=re.escape(message)):
        load_pretrained(folder)


def test_generation_config_has_the_last_word_on_eos(folder: Path):
    edit_config(folder, eos_token_id=5)
    assert load_pretrained(folder)[0].eos == (2, 3)
    (folder / "generation_config.json").unlink()
    assert load_pretrained(folder)[0].eos == (5,)


@pytest.mark.parametrize("folder", ["nowhere", Path("no/where"), "./no/where/at/all"])
def test_no_folder(folder: Any):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*or a name on the Hugging Face"
    ):
        load_pretrained(folder)


def test_hub_name(monkeypatch: pytest.MonkeyPatch, folder: Path):
    hub = pytest.importorskip("huggingface_hub", reason="it is an extra")
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(snapshot)

    (folder.parent / "snapshots").mkdir()
    snapshot = folder.rename(
        folder.parent / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    )
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load_pretrained("some-org/some.model", revision="v1.2")[0] == CONFIG
    [(name, revision, patterns)] = asked
    assert (name, revision) == ("some-org/some.model", "v1.2")
    assert find_pretrained("some-org/some.model") == (snapshot, snapshot.name)
    assert asked[-1][1] is None
    assert {"config.json", "model*.safetensors", "tokenizer.json"} <= set(patterns)
    assert not [pattern for pattern in patterns if "bin" in pattern]


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub", reason="it is an extra")

    def download(name: str, **_: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("no connection\nat all")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(
        FileNotFoundError, match=r"\(LocalEntryNotFoundError: no connection\): without"
    ):
        load_pretrained("org/model")


def test_a_folder_has_no_revision(folder: Path):
    with pytest.raises(ValueError, match=r"model is a folder, which has no revision, found 'v1'"):
        load_pretrained(folder, revision="v1")
    assert find_pretrained(folder) == (folder, None)


@pytest.mark.parametrize(
    "package, extra",
    [
        ("huggingface_hub", "hub"),
        ("safetensors", "pretrained"),
        ("tokenizers", "pretrained"),
        ("jinja2", "pretrained"),
    ],
)
def test_extra_that_is_absent(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    add_tokenizer(folder)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'shatter-lm\[{extra}\]'"):
        if package == "huggingface_hub":
            load_pretrained("org/model")
        _, _, tokenizer = load_pretrained(folder)
        assert tokenizer is not None
        tokenizer.with_chat_template("{{ messages }} without jinja")


@pytest.mark.parametrize("pieces, fits", [(7, True), (11, True), (12, False)])
def test_vocabularies(pieces: int, fits: bool, folder: Path, tmp_path: Path):
    """A tokenizer may have fewer tokens than the embedding, but not more."""
    add_tokenizer(folder, pieces)
    if fits:
        tokenizer = load_pretrained(folder)[2]
        assert tokenizer is not None and tokenizer.vocab_size == pieces
    else:
        message = "the tokenizer has 12 tokens, the model's embedding 11"
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path / "x", CONFIG, random_params(CONFIG), load_tokenizer(folder))
        assert not (tmp_path / "x").exists()


def test_save_refuses(tmp_path: Path):
    params = random_params(CONFIG)
    with pytest.raises(ValueError, match=r"have adapters.*merge them into the weights"):
        save_pretrained(tmp_path / "x", CONFIG, {**params, "lora": {}})
    other = random_params(GPT2)
    with pytest.raises(ValueError, match=r"blocks/mlp_in/kernel has shape \(2, 8, 12\), expected "):
        save_pretrained(tmp_path / "x", CONFIG, other)
    with pytest.raises(
        ValueError, match=r"qkv/kernel has shape \(2, 8, 12, 2\), expected \(2, 8, 8"
    ):
        qkv = {"kernel": other["params"]["blocks"]["qkv"]["kernel"]}
        blocks = params["params"]["blocks"] | {"qkv": qkv}
        save_pretrained(tmp_path / "x", CONFIG, {"params": params["params"] | {"blocks": blocks}})
    with pytest.raises(ValueError, match="no family of pretrained models has head_bias = True"):
        config = TransformerConfig(vocab_size=5, max_length=4)
        save_pretrained(tmp_path / "x", config, random_params(config))
    assert not os.listdir(tmp_path)


def test_save_over_another_model(folder: Path, tmp_path: Path):
    """No file of the older model is left, whichever of the two is saved last."""
    for number, size in enumerate([1500, 10**9, 3000, 1500]):
        params = jax.tree.map(lambda leaf, n=number: leaf + n, random_params(CONFIG))
        save_pretrained(folder, CONFIG, params, max_shard_size=size)
        assert_same(load_pretrained(folder)[1], params)
        assert (folder / "model.safetensors").exists() is (size == 10**9)
    assert not list(folder.glob("*-of-00002*"))
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_stale_chat_template_goes(folder: Path):
    add_tokenizer(folder)
    config, params, tokenizer = load_pretrained(folder)
    assert tokenizer is not None
    (folder / "chat_template.jinja").write_text("stale")
    (folder / "notes.txt").write_text("the user's")
    save_pretrained(folder, config, params)
    assert (folder / "chat_template.jinja").exists()
    save_pretrained(folder, config, params, tokenizer)
    assert load_pretrained(folder)[2] == tokenizer
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("killed_at", range(5))
def test_interrupted_save_harms_nothing(
    killed_at: int, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    """At whichever file it is interrupted, the folder holds the older or the newer model, whole."""
    old = load_pretrained(folder)[1]
    new = jax.tree.map(lambda leaf: leaf + 1, old)
    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    if killed_at < 3:
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(folder, CONFIG, new)
    else:
        save_pretrained(folder, CONFIG, new)
    assert_same(load_pretrained(folder)[1], old if killed_at == 0 else new)


def test_new_folder_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG))
    assert not os.listdir(tmp_path)


@partial(jax.jit, static_argnums=(0, 3))
def greedy(lm: Any, params: Any, prompt: Any, length: int) -> Any:
    """Returns the most likely continuation of `prompt[P]`, `[length]`."""
    logits, cache = lm.decode(params, lm.init_cache(1, len(prompt) + length), prompt[None])

    def step(carry, _):
        token, cache = carry
        logits, cache = lm.decode(params, cache, token[:, None])
        return (jnp.argmax(logits[:, -1], axis=-1), cache), token[0]

    return jax.lax.scan(step, (jnp.argmax(logits[:, -1], axis=-1), cache), length=length)[1]


def test_real_model_tells_its_story(data_dir: Path, tmp_path: Path):
    """It continues BOS with the published story; so it does saved in shards and loaded again."""
    config, params, tokenizer = load_pretrained(data_dir / "stories260k")
    assert (config.bos, config.eos, config.tied, config.num_kv_heads) == (1, (2,), True, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 260_032
    tokens = greedy(transformer(config), params, jnp.array([config.bos]), 80)
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high."
    )
    assert tokenizer is not None
    assert tokenizer.decode(np.asarray(tokens)).startswith(story)

    save_pretrained(tmp_path, config, params, tokenizer, max_shard_size=200_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = load_pretrained(tmp_path)
    assert again[0] == config and again[2] == tokenizer
    assert_same(again[1], params)
    shutil.copy(data_dir / "stories260k" / "config.json", tmp_path)
    assert load_pretrained(tmp_path)[0] == config
