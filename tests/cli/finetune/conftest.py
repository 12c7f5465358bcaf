"""Fixtures of the tests of `shatter finetune`: one tiny model, and a cache for each test."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps the reference's log-probs in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[[Path, int], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Returns a random model of one block. All runs on it share compiled programs."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 1)
    return folder
