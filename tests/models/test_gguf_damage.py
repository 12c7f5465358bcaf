"""Damaged and unknown GGUF files are refused by a message that names the key and the value."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="it is an extra")
pytest.importorskip("tokenizers", reason="it is an extra")
gguf = pytest.importorskip("gguf", reason="it is an extra")

from shatter import models  # noqa: E402
from shatter.models.gguf_header import read_header  # noqa: E402
from tests.models.gguf_files import write_gguf  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(file)
    return file.read_bytes()


@pytest.fixture(scope="module")
def end(whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Where the header ends and the values of the first tensor begin."""
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    file.write_bytes(whole)
    return min(place.start for place in read_header(file).tensors.values())


def refusal(tmp_path: Path, content: bytes) -> str | None:
    """Loads a file, and returns the message if it is refused; other errors fail the test."""
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    try:
        models.load_pretrained(file)
    except ValueError as error:
        assert str(file) in str(error)
        return str(error)
    return None


def test_a_file_that_is_cut_off(whole: bytes, end: int, tmp_path: Path):
    sizes = {*range(0, 40), *range(40, end, end // 50), *range(end, len(whole), len(whole) // 20)}
    for size in sorted(sizes):
        message = refusal(tmp_path, whole[:size])
        assert message is not None and f"({size} bytes)" in message
        assert "cut off" in message, message


def damage(whole: bytes, end: int, tmp_path: Path, step: int) -> int:
    """Overwrites parts of the header, and returns how many files were still accepted."""
    accepted = 0
    for offset in range(0, end - 8, step):
        for value in (b"\xff" * 8, struct.pack("<Q", 2**60), bytes(8), b"\x80"):
            changed = whole[:offset] + value + whole[offset + len(value) :]
            accepted += refusal(tmp_path, changed) is None
    return accepted


def test_overwritten_parts_of_the_header(whole: bytes, end: int, tmp_path: Path):
    """Either the file loads, because what was hit is a word or a piece, or a message says why."""
    damage(whole, end, tmp_path, step=331)


@pytest.mark.slow
def test_many_overwritten_parts_of_the_header(whole: bytes, end: int, tmp_path: Path):
    damage(whole, end, tmp_path, step=37)


def counted(number: int, offset: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:offset] + struct.pack("<Q", number) + whole[offset + 8 :]


def of_key(key: str, number: int, skip: int) -> Callable[[bytes], bytes]:
    """Overwrites the count that follows a key, its type and `skip` more bytes."""

    def change(whole: bytes) -> bytes:
        return counted(number, whole.index(key.encode()) + len(key) + skip)(whole)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda whole: b"GGML" + whole[4:], r"it begins with b'GGML', expected b'GGUF'"),
        (lambda whole: b"GGUF\x01" + whole[5:], "its version is 1; known are 2 and 3, little-"),
        (lambda w: b"GGUF\0\0\0\3" + w[8:], "its version is 50331648: its bytes are in big-endian"),
        (counted(2**63, 8), "it declares 9223372036854775808 tensors, of at least 24 bytes each"),
        (counted(2**63, 16), "it declares 9223372036854775808 settings, of at least 13 bytes"),
        (of_key("tokenizer.ggml.tokens", 2**60, 8), "tokens, a list of 1152921504606846976 texts"),
        (of_key("ggml.token_type", 2**61, 8), "token_type, a list of 2305843009213693952, needs 9"),
        (of_key("blk.1.ffn_up.weight", 2**40, 4), r"blk.1.ffn_up.weight \(64, 1099511627776\) in"),
        (of_key("blk.1.ffn_up.weight", 0, 4), r"has shape \(64, 0\); expected sizes from 1 on"),
        (of_key("blk.1.ffn_up.weight", 2**62, 24), "is at bytes 4611686018427.*beyond the end"),
        (of_key("blk.1.ffn_up.weight", 3, 24), "is at the offset 3, no multiple of 32"),
        (of_key("blk.1.ffn_up.weight", 0, 24), "the tensors .* overlap at byte"),
    ],
)
def test_counts_and_offsets(
    change: Callable[[bytes], bytes], message: str, whole: bytes, tmp_path: Path
):
    (tmp_path / "model.gguf").write_bytes(change(whole))
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(tmp_path / "model.gguf")


def set_to(key: str, value: Any) -> Callable[[Any], None]:
    """Replaces a setting by another, or removes it (None)."""

    def change(writer: Any) -> None:
        for settings in writer.kv_data:
            settings.pop(key, None)
        add = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
        add |= {int: writer.add_uint32, bool: writer.add_bool}
        if value is not None:
            add[type(value)](key, value)

    return change


KEY = "tokenizer.ggml."


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "general.architecture",
            "mamba",
            "'mamba'; the known ones are llama, qwen2, qwen3, gemma3",
        ),
        ("general.architecture", 7, "general.architecture is 7; the known ones are"),
        ("split.count", 3, "split.count is 3: the model is spread over several files"),
        ("llama.block_count", None, "llama.block_count is missing"),
        (
            "llama.block_count",
            2**31 - 1,
            "llama.block_count is 2147483647, but the weights hold 20 t",
        ),
        ("llama.block_count", "two", "llama.block_count must be an integer from 1 to"),
        ("llama.attention.head_count", [4, 4], r"head_count must be an integer .*found array\("),
        ("llama.attention.head_count_kv", 3, "num_key_value_heads must divide num_attention_heads"),
        ("llama.attention.value_length", 4, "value_length must be 8, the size of a head, found 4"),
        ("llama.attention.layer_norm_rms_epsilon", 7.0, "rms_epsilon must be a number from 1e-20"),
        ("llama.rope.scaling.type", "yarn", "rope.scaling.type is 'yarn'; the known ones are none"),
        ("llama.expert_count", 8, "llama.expert_count must be 0 or absent, found 8"),
        (
            "llama.embedding_length",
            64,
            r"attn_norm.weight has shape \(32,\), expected \(64,\)",
        ),
        ("llama.vocab_size", 100, "tokens has 340 tokens, but the embedding has 100 rows"),
        (KEY + "model", "bert", "model is 'bert'; the known tokenizers are gpt2 .*, llama"),
        (KEY + "pre", "tekken", "pre is 'tekken' .*pre-tokenizers are gpt-2, smollm, llama-bpe"),
        (KEY + "pre", None, r"pre is None \(None = missing\); the known pre-tokenizers are"),
        (KEY + "tokens", None, "tokenizer.ggml.tokens is missing"),
        (KEY + "tokens", ["a", "b"], "tokens has 2 tokens, but the embedding has 340 rows"),
        (KEY + "tokens", ["x"] * 340, "tokens has 'x' twice, as 0 and 1"),
        (KEY + "token_type", [1, 1], "token_type: expected 340 numbers, one a token, found 2"),
        (KEY + "merges", ["a b", "abc"], r"merges\[1\] is 'abc'; expected two pieces and a space"),
        (KEY + "merges", ["a ~~"], "the tokenizer cannot be read: Token `~~` out of vocabulary"),
        (KEY + "merges", None, "tokenizer.ggml.merges is missing"),
        (KEY + "bos_token_id", 999, "bos_token_id must be an integer from 0 to 339, found 999"),
        (KEY + "add_bos_token", 1, "add_bos_token must be true or false, found 1"),
        ("tokenizer.chat_template", 5, "tokenizer.chat_template must be a text, found 5"),
    ],
)
def test_settings(key: str, value: Any, message: str, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", change=set_to(key, value))
    with pytest.raises(ValueError, match=message) as error:
        models.load_pretrained(tmp_path / "model.gguf")
    assert str(tmp_path / "model.gguf") in str(error.value)


def test_scores(tmp_path: Path):
    change = set_to(KEY + "scores", None)
    write_gguf(tmp_path / "model.gguf", pre=None, change=change)
    with pytest.raises(ValueError, match=r"tokenizer.ggml.scores is missing"):
        models.load_pretrained(tmp_path / "model.gguf")
    change = set_to(KEY + "scores", [float("nan")] * 2)
    write_gguf(tmp_path / "other.gguf", pre=None, change=change)
    with pytest.raises(ValueError, match=r"scores: expected \d+ numbers, one a token, found 2"):
        models.load_pretrained(tmp_path / "other.gguf")


UP = "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("token_embd.weight"), r"token_embd.weight is missing"),
        (lambda t: t.pop(UP), rf"{UP} is missing, expected with shape \(64, 32\)"),
        (lambda t: t.update({UP: t[UP][:32]}), rf"{UP} has shape \(32, 32\), expected \(64, 32\)"),
        (lambda t: t.update(extra=t[UP] + 1), r"extra with shape \(64, 32\) is unexpected"),
        (lambda t: t.update({UP: t[UP] * np.nan}), f"{UP} holds 2048 values of 2048 that are NaN"),
    ],
)
def test_tensors(edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", edit=edit)
    with pytest.raises(ValueError, match=f"model.gguf: {message}"):
        models.load_pretrained(tmp_path / "model.gguf")


def test_divisors_of_another_model(tmp_path: Path):
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["rope_freqs.weight"] = tensors["rope_freqs.weight"] ** 1.1

    write_gguf(tmp_path / "model.gguf", "llama-3", edit=edit)
    with pytest.raises(ValueError, match=r"rope_freqs.weight: expected the divisors of Llama 3"):
        models.load_pretrained(tmp_path / "model.gguf")


def test_a_setting_that_is_there_twice(tmp_path: Path, whole: bytes):
    other = whole.replace(b"llama.rope.freq_base", b"llama.context_length")
    (tmp_path / "model.gguf").write_bytes(other)
    with pytest.raises(ValueError, match=r"the setting llama.context_length is there twice"):
        models.load_pretrained(tmp_path / "model.gguf")
