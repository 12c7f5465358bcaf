"""`shatter convert`: the same model in another layout."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import models
from shatter.cli import convert
from shatter.cli.common.binary import UsageError
from shatter.cli.convert import Config


@pytest.fixture(scope="module")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 1)
    generation = {"temperature": 0.6, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture
def adapters(model_folder: Path, tmp_path: Path) -> Path:
    """A folder of adapters on the model, far from 0."""
    transformer, params, _ = models.load_pretrained(model_folder)
    lora = models.LoraConfig(2, 4.0, ("query", "value"))
    drawn = models.init_lora(jax.random.key(3), params, lora)
    drawn = jax.tree.map(lambda leaf: leaf + 0.3, drawn)
    models.save_lora(tmp_path / "adapters", transformer, drawn, lora, base=model_folder)
    return tmp_path / "adapters"


def logits(folder: Path) -> np.ndarray:
    config, params, _ = models.load_pretrained(folder, dtype="float32")
    tokens = jnp.arange(3, 9)[None]
    return np.asarray(models.transformer(config).apply(params, tokens))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["stored", "float32", "bfloat16", "float16"])
def test_the_type_changes_and_nothing_else(model_folder: Path, tmp_path: Path, dtype: str):
    convert.experiment(Config(str(model_folder), str(tmp_path / "new"), dtype=dtype))
    _, params, tokenizer = models.load_pretrained(tmp_path / "new")
    expected = "float32" if dtype == "stored" else dtype
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {expected}
    assert tokenizer is not None
    settings = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert settings["temperature"] == 0.6
    tolerance = {"bfloat16": 0.05, "float16": 0.01}.get(dtype, 0.0)
    np.testing.assert_allclose(logits(tmp_path / "new"), logits(model_folder), atol=tolerance)


@pytest.mark.slow
def test_merged_adapters_are_the_model_with_adapters(
    model_folder: Path, adapters: Path, tmp_path: Path
):
    convert.experiment(Config(str(adapters), str(tmp_path / "merged")))
    config, params, _ = models.load_pretrained(model_folder)
    trained, lora = models.load_lora(adapters, config)
    tokens = jnp.arange(3, 9)[None]
    expected = models.transformer(config).apply(models.with_lora(params, trained, lora), tokens)
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-5)
    assert np.abs(logits(tmp_path / "merged") - logits(model_folder)).max() > 0.1


def test_adapters_without_a_base_ask_for_it(model_folder: Path, adapters: Path, tmp_path: Path):
    file = adapters / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": None}
    file.write_text(json.dumps(settings))
    config = Config(str(adapters), str(tmp_path / "merged"))
    with pytest.raises(UsageError, match="pass it as --base_model=FOLDER"):
        convert.experiment(config)
    convert.experiment(Config(str(adapters), config.output_dir, base_model=str(model_folder)))
    assert (tmp_path / "merged" / "config.json").exists()


def test_nothing_is_written_over(model_folder: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        convert.experiment(Config(str(model_folder), str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt"}


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="--model_name_or_path=nowhere"):
        convert.experiment(Config("nowhere", str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_gguf_file_becomes_a_folder(tmp_path: Path):
    """And adapters on such a file are merged into it."""
    pytest.importorskip("gguf", reason="it is an extra")
    from tests.models.gguf_files import write_gguf

    file = tmp_path / "model.gguf"
    like = write_gguf(file, kind="F16")
    convert.experiment(Config(str(file), str(tmp_path / "new"), dtype="float32"))
    config, params, tokenizer = models.load_pretrained(tmp_path / "new")
    expected_config, expected, _ = models.load_pretrained(like)
    assert config == expected_config and tokenizer == models.load_pretrained(file)[2]
    jax.tree.map(np.testing.assert_array_equal, params, expected)

    lora = models.LoraConfig(2, 4.0, ("query",))
    drawn = jax.tree.map(lambda leaf: leaf + 0.3, models.init_lora(jax.random.key(3), params, lora))
    models.save_lora(tmp_path / "adapters", config, drawn, lora, base=file)
    convert.experiment(
        Config(str(tmp_path / "adapters"), str(tmp_path / "merged"), dtype="float32")
    )
    merged = models.merge_lora(params, drawn, lora)
    found = models.load_pretrained(tmp_path / "merged")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, merged)


def test_a_damaged_gguf_file_leaves_nothing_behind(tmp_path: Path):
    pytest.importorskip("gguf", reason="it is an extra")
    from tests.models.gguf_files import write_gguf

    write_gguf(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"--model_name_or_path=.*cut.gguf: .*cut.gguf .* cut off"):
        convert.experiment(Config(str(tmp_path / "cut.gguf"), str(tmp_path / "new")))
    assert sorted(tmp_path.iterdir()) == before
