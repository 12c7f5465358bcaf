"""Members that are language models: a cycle, their utilities, their export."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter import data, documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.label import run
from shatter.cli.label.config import ExportConfig, ProposeConfig
from shatter.cli.label.project import open_project, utilities
from shatter.cli.label.records import read_project
from tests.cli.label.projects import assert_a_cycle_works

pytestmark = pytest.mark.slow  # takes long to compile


def test_a_cycle(config: ProposeConfig):
    config = dataclasses.replace(config, ensemble="adapters")
    assert_a_cycle_works(config)
    for member in (1, -1):
        path = Path(config.project) / f"model{member}"
        run.experiment(ExportConfig(project=config.project, model=str(path), member=member))
        assert (path / "model.safetensors").exists()


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the search for the adapters' prior scale, which `test_a_cycle` tests."""
    monkeypatch.setattr("shatter.cli.label.start.adapter_prior_scale", lambda *_: 2.0)


LAST_ALONE = {"adapted_layers": "last_mlp_out", "lora_target_modules": ("mlp_out",)}


@pytest.mark.parametrize("changes", [{}, LAST_ALONE], ids=["blocks", "last_mlp_out"])
def test_utilities_of_adapters_are_those_of_the_merged_models(
    config: ProposeConfig, tmp_path: Path, no_search, changes
):
    base = tmp_path / "base"
    shutil.copytree(config.model_name_or_path, base)
    settings = json.loads((base / "generation_config.json").read_text()) | {"top_p": 0.8}
    (base / "generation_config.json").write_text(json.dumps(settings))
    config = dataclasses.replace(
        config, model_name_or_path=str(base), ensemble="adapters", utility="sum", **changes
    )
    project = open_project(config)
    values = utilities(project, np.arange(3))
    for member in (1, -1):
        path = project.folder / f"model{member}"
        run.experiment(ExportConfig(project=config.project, model=str(path), member=member))
        assert (path / "model.safetensors").exists()
        assert json.loads((path / "generation_config.json").read_text()) == settings
    if changes:
        assert_an_old_record_of_the_choice_opens(config)
    loaded, params, tokenizer = models.load_pretrained(project.folder / "model1", dtype="float32")
    apply = jax.jit(models.transformer(loaded).apply)
    for n, (prompt, text) in enumerate(project.items[:3]):
        row = data.Row(prompt, (text,), (0,))
        encoded, _ = data.encode_rows([row], tokenizer, max_length=24)
        batch = data.collate(encoded, [0], length=24, num_slots=1)
        logits = apply(params, batch.tokens[0], valid=batch.valid[0])
        expected = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
        np.testing.assert_allclose(values[1, n], expected[0], atol=1e-4)


def assert_an_old_record_of_the_choice_opens(config: ProposeConfig) -> None:
    """Older versions wrote 0 for adapters on the last mlp_out alone."""
    file = Path(config.project) / "config.json"
    record = json.loads(file.read_text())
    assert record["adapted_layers"] == "last_mlp_out"
    file.write_text(json.dumps(record | {"adapted_layers": 0}))
    file.with_name("config.json.sha256").unlink()
    for same in (config, read_project(config.project)):
        assert open_project(same).config.adapted_layers == "last_mlp_out"
    with pytest.raises(UsageError, match="adapted_layers: found 0, wanted 1"):
        open_project(dataclasses.replace(config, adapted_layers=1))
