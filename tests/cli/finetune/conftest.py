"""One tiny model for all tests of fine-tuning, and a cache of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Log-probs of the reference are kept in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[[Path, int], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model of one block; runs on it share compiled programs."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 1)
    return folder
