"""generation_config.json: the end tokens, and the other settings of the original model."""

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from shatter.models import (
    LoraConfig,
    TransformerConfig,
    end_tokens,
    init_lora,
    load_lora,
    load_pretrained,
    save_lora,
    save_pretrained,
    transformer,
)

pytest.importorskip("safetensors", reason="it is an extra")
tokenizers = pytest.importorskip("tokenizers", reason="it is an extra")

CONFIG = TransformerConfig(
    vocab_size=9, max_length=8, width=4, num_layers=1, num_heads=2, tied=True, head_bias=False
)
LORA = LoraConfig(rank=1, targets=("qkv",))
ORIGINAL = {
    "bos_token_id": 8,
    "eos_token_id": [7, 8],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "bad_words_ids": [[3]],
    "transformers_version": "4.37.0",
}


@cache
def zeros() -> tuple[Any, Any]:
    """Returns parameters and adapters."""
    shapes = jax.eval_shape(transformer(CONFIG).init, jax.random.key(0))
    own = jax.eval_shape(partial(init_lora, lora=LORA), jax.random.key(0), shapes)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (shapes, own))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tokenizer ends a text with token 5."""
    folder = tmp_path_factory.mktemp("original")
    config = dataclasses.replace(CONFIG, bos=8, eos=(7, 8))
    save_pretrained(folder, config, zeros()[0])
    (folder / "generation_config.json").write_text(json.dumps(ORIGINAL))
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "w5", "bos_token": "w8"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def written(folder: Path, name: str = "generation_config") -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("eos", "of_generation", "of_config"),
    [
        ((7, 8), [5, 7, 8], [5, 7, 8]),
        ((7, 5), [7, 5], [5, 7]),
        ((5,), 5, 5),
        ((), 5, 5),
    ],
    ids=str,
)
def test_the_token_that_closed_the_completions_is_among_the_end_tokens(
    eos: tuple[int, ...], of_generation: Any, of_config: Any, original: Path, tmp_path: Path
):
    config, params, tokenizer = load_pretrained(original)
    assert tokenizer is not None and tokenizer.eos == 5
    config = dataclasses.replace(config, eos=eos)
    save_pretrained(tmp_path / "model", config, params, tokenizer, like=original)
    save_lora(tmp_path / "own", config, zeros()[1], LORA, tokenizer=tokenizer, like=original)
    expected = ORIGINAL | {"eos_token_id": of_generation}
    assert written(tmp_path / "model") == written(tmp_path / "own") == expected
    assert written(tmp_path / "model", "config")["eos_token_id"] == of_config
    again, _, saved = load_pretrained(tmp_path / "model")
    assert saved == tokenizer
    assert set(again.eos) == {5, *eos}
    (
        tmp_path / "model" / "tokenizer_config.json"
    ).unlink()  # then the first one of config.json is read
    assert load_pretrained(tmp_path / "model")[2].eos == 5
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == tokenizer.files["tokenizer.json"]
    assert load_lora(tmp_path / "own", config)[1] == LORA


@pytest.mark.parametrize(
    ("eos", "expected"), [((7, 8), (5, 7, 8)), ((7, 5), (5, 7)), ((5,), (5,)), ((), (5,))], ids=str
)
def test_the_end_token_of_the_tokenizer_is_the_first(
    eos: tuple[int, ...], expected: tuple[int, ...], original: Path
):
    config, _, tokenizer = load_pretrained(original)
    config = dataclasses.replace(config, eos=eos)
    assert end_tokens(config, tokenizer) == expected
    assert end_tokens(config, None) == eos


def test_nothing_is_kept_of_no_original(original: Path, tmp_path: Path):
    config, params, _ = load_pretrained(original)
    save_pretrained(tmp_path, config, params)
    assert written(tmp_path) == {"bos_token_id": 8, "eos_token_id": [7, 8]}
    save_pretrained(tmp_path, dataclasses.replace(config, bos=None, eos=()), params)
    assert written(tmp_path) == {}
    save_pretrained(tmp_path, dataclasses.replace(config, bos=None, eos=()), params, like=original)
    assert written(tmp_path) == ORIGINAL | {"bos_token_id": None, "eos_token_id": None}


def test_a_folder_may_be_saved_over_itself(original: Path, tmp_path: Path):
    config, params, tokenizer = load_pretrained(original)
    save_pretrained(tmp_path, config, params, tokenizer, like=original)
    first = written(tmp_path)
    save_pretrained(tmp_path, load_pretrained(tmp_path)[0], params, tokenizer, like=tmp_path)
    assert written(tmp_path) == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json is not JSON"),
        ('{"temperature": NaN}', "generation_config.json: temperature must be finite, found nan"),
        ('{"eos_token_id": "</s>"}', "generation_config.json: eos_token_id must be a token id or"),
    ],
)
def test_an_original_that_cannot_be_read(text: str, message: str, tmp_path: Path):
    save_pretrained(tmp_path / "a", CONFIG, zeros()[0])
    (tmp_path / "a" / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        save_pretrained(tmp_path / "b", CONFIG, zeros()[0], like=tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_pretrained(tmp_path / "b", CONFIG, zeros()[0], like=tmp_path / "nowhere")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("base", ["org/name", None, "folder"])
def test_the_base_of_adapters(base: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name on the hub is saved as it is, a folder as an absolute path."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    save_lora("own", CONFIG, zeros()[1], LORA, base=base)
    settings = written(tmp_path / "own", "adapter_config")
    expected = str(tmp_path / "folder") if base == "folder" else base
    assert (settings["base_model_name_or_path"], settings["revision"]) == (expected, None)
    if base == "org/name":
        save_lora("own", CONFIG, zeros()[1], LORA, base=base, revision="v1")
        assert written(tmp_path / "own", "adapter_config")["revision"] == "v1"
    else:
        with pytest.raises(
            ValueError, match="a revision needs a base by its name on the Hugging Face hub"
        ):
            save_lora("own", CONFIG, zeros()[1], LORA, base=base, revision="v1")
