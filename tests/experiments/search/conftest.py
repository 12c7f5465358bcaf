"""Model folders of the tests: a pretrained model with two blocks, and two judges."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from shatter.cli.finetune.reward_models import HEAD
from tests.experiments.search.worlds import LETTERS


@pytest.fixture(scope="session")
def folder(make_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "tiny"
    make_model(path, 2, words=LETTERS, seed=7)
    return path


@pytest.fixture(scope="session")
def judges(make_model, tmp_path_factory):
    """The flags of two judges with heads of their own."""
    path, rng = tmp_path_factory.mktemp("judges"), np.random.default_rng(5)
    for seed, name in enumerate(("reward_model", "held_out_reward_model")):
        make_model(path / name, 1, words=LETTERS, seed=20 + seed)
        head = rng.normal(size=(1, 8)).astype(np.float32)
        save_file({"score.weight": head}, path / name / HEAD)
    return {name: str(path / name) for name in ("reward_model", "held_out_reward_model")}
