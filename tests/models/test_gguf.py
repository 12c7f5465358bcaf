"""GGUF files load as the folders that they were made from."""

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="it is an extra")
tokenizers = pytest.importorskip("tokenizers", reason="it is an extra")
gguf = pytest.importorskip("gguf", reason="it is an extra")

from shatter import models  # noqa: E402
from shatter.models.gguf_header import Header, Place, read_header  # noqa: E402
from shatter.models.gguf_weights import read_tensor  # noqa: E402
from tests.models.gguf_files import (  # noqa: E402
    CONFIGS,
    HARD,
    SPECIAL,
    TEMPLATE,
    byte_level,
    joined,
    scored_tokens,
    scores,
    write_gguf,
)


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_the_folder_it_was_made_from(name: str, tmp_path: Path):
    folder = write_gguf(tmp_path / "model.gguf", name)
    config, params, tokenizer = models.load_pretrained(tmp_path / "model.gguf")
    expected_config, expected, _ = models.load_pretrained(folder)
    assert config == expected_config
    assert_same(params, expected)
    assert tokenizer is not None
    assert models.find_pretrained(tmp_path / "model.gguf") == (tmp_path / "model.gguf", None)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1", "BF16"])
def test_the_types_of_matrices(kind: str, tmp_path: Path):
    folder = write_gguf(tmp_path / "model.gguf", kind=kind)
    _, params, _ = models.load_pretrained(str(tmp_path / "model.gguf"), dtype="float32")
    assert_same(params, models.load_pretrained(folder)[1])
    _, stored, _ = models.load_pretrained(tmp_path / "model.gguf")
    expected = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    assert str(stored["params"]["blocks"]["qkv"]["kernel"].dtype) == expected
    assert str(stored["params"]["final_norm"]["scale"].dtype) == "float32"


def test_the_header_is_what_the_package_reads(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", pre=None, kind="Q8_0")
    header, theirs = read_header(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: f.contents() for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert header.settings.keys() == fields.keys()
    for key, value in header.settings.items():
        is_float = isinstance(value, float)  # the shortest decimal that is rounded to it
        found = np.float32(value) if is_float else value
        assert np.array_equal(found, fields[key]), key
    for tensor in theirs.tensors:
        place = header.tensors[tensor.name]
        assert place.shape == tuple(tensor.shape[::-1]) and place.kind == tensor.tensor_type.name
        assert (place.start, place.stop - place.start) == (tensor.data_offset, tensor.n_bytes)
    assert len(header.tensors) == len(theirs.tensors)


def quantised() -> list[str]:
    kinds = [kind.name for kind in gguf.GGMLQuantizationType]
    return [kind for kind in kinds if kind.startswith(("Q", "IQ", "TQ", "MX", "NV"))]


@pytest.mark.parametrize("kind", quantised())
def test_dequantised_in_parts_is_dequantised_whole(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Or the package cannot do it, and the file is refused with the types that it can do."""
    from shatter.models import gguf_weights

    code = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[code]
    content = np.random.Generator(np.random.PCG64(0)).integers(0, 256, 7 * 3 * size, np.uint8)
    header = Header(Path("x"), {}, {"w": Place((7, 3 * block), kind, 0, len(content))}, content)
    monkeypatch.setattr(gguf_weights, "_CHUNK", 2 * block)
    try:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(content.reshape(7, 3 * size), code)
            np.testing.assert_array_equal(read_tensor(header, "w"), expected)
    except NotImplementedError:
        with pytest.raises(ValueError, match=f"w is stored as {kind}; the known types are F32, F"):
            gguf_weights.Weights(header)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_tokens_of_bytes_are_those_of_the_original(pre: str, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", pre=pre)
    tokenizer = models.load_pretrained(tmp_path / "model.gguf")[2]
    original = byte_level(pre)
    assert tokenizer is not None
    for text in HARD:
        tokens = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == tokens, text
        assert tokenizer.decode(tokens) == original.decode(tokens)
    assert tokenizer.adds_bos == (pre == "llama-bpe")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, None)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_of_pieces_are_those_of_the_definition(prefix: bool, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", pre=None, prefix=prefix)
    tokenizer = models.load_pretrained(tmp_path / "model.gguf")[2]
    assert tokenizer is not None and tokenizer.adds_bos
    tokens, pieces = list(scored_tokens()), scores()
    for text in HARD:
        if any(added in text for added in (*SPECIAL, "<tool>", "  ", "▁▁", " ▁")):
            continue
        spaced = ("▁" if prefix and text else "") + text.replace(" ", "▁")
        assert tokenizer.encode(text) == joined(spaced, pieces, tokens), text
    # Tokens of the user are found first, the longest of them, and special ones keep their texts.
    ids = {token: number for number, token in enumerate(tokens)}
    assert tokenizer.encode("<s><tool></s>") == [ids["<s>"], ids["<tool>"], ids["</s>"]]
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"
    if not prefix:
        assert tokenizer.decode(tokenizer.encode("the cat   sat ")) == "the cat   sat "
        spaces = [ids["   "], *joined("x", pieces, tokens)]
        assert tokenizer.encode("   x") == tokenizer.encode("▁ ▁x") == spaces


def test_tokens_of_a_real_vocabulary(data_dir: Path, tmp_path: Path):
    """That of stories260k, with the scores that its merges stand for."""
    from shatter.models.gguf_tokenizer import read_tokenizer

    file = data_dir / "stories260k" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    scores: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        scores.setdefault("".join(merge), -rank - 1.0)
    types = [2, 3, 3] + [6] * 256 + [1] * (len(model["vocab"]) - 259)
    settings: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(model["vocab"]),
        "tokenizer.ggml.token_type": np.array(types),
        "tokenizer.ggml.scores": np.array([scores.get(t, -1e6) for t in model["vocab"]]),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    ours = read_tokenizer(Header(Path("x"), settings, {}, np.zeros(0, np.uint8)), 512)
    original = tokenizers.Tokenizer.from_file(str(file))
    assert ours is not None
    for text in HARD:
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids, text
        assert list(ours.backend.encode(text).ids) == original.encode(text).ids


@pytest.mark.parametrize("pre", ["smollm", None])
def test_saved_as_a_folder_it_is_the_same_model(pre: str | None, tmp_path: Path):
    def change(writer: Any) -> None:
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
        writer.add_eot_token_id(3)
        writer.add_pad_token_id(2)

    write_gguf(tmp_path / "model.gguf", pre=pre, change=change)
    config, params, tokenizer = models.load_pretrained(tmp_path / "model.gguf")
    new = tmp_path / "new"
    models.save_pretrained(new, config, params, tokenizer, like=tmp_path / "model.gguf")
    again, expected, loaded = models.load_pretrained(new)
    assert again == config and config.eos == (1, 3)
    assert_same(expected, params)
    assert loaded == tokenizer and loaded is not None and tokenizer is not None
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.adds_bos and loaded.pad == 2 and loaded.chat_template == TEMPLATE
    text = loaded.render_chat([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
    assert loaded.encode(text)[0] == 2
    around = loaded.backend.encode("the cat").ids
    assert around == [0, *loaded.encode("the cat"), 1]


@pytest.mark.slow
def test_a_real_file_is_never_in_memory_twice(smollm2: Path):
    """At most the model, and the tensor that is read and the leaf that it belongs to."""
    tracemalloc.start()
    try:
        config, params, tokenizer = models.load_pretrained(smollm2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size == 4 * 134_515_008 and peak < 1.5 * size
    assert tokenizer is not None and config.num_layers == 30
    text = tokenizer.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert tokenizer.encode(text)[-4:] == tokenizer.encode("<|im_start|>assistant\n")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"needs the package gguf: pip install 'shatter-lm\[gguf"):
        models.load_pretrained(tmp_path / "model.gguf")


def test_other_files_and_revisions_are_refused(tmp_path: Path):
    folder = write_gguf(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="is a file, which has no revision, found 'main'"):
        models.load_pretrained(tmp_path / "model.gguf", revision="main")
    with pytest.raises(ValueError, match="safetensors is a part of a model: pass its folder"):
        models.load_pretrained(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no config.json but GGUF .* as .*model.gguf"):
        models.load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent.gguf"):
        models.load_pretrained("org/absent.gguf")
