"""Made-up data in place of the published files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.common import sources
from tests.experiments.judgements.files import json_lines


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """Returns `(name, text) -> data folder`, which writes a file in place of a published one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, "")

    def write(name: str, text: str) -> Path:
        source = sources.SOURCES[name]
        folder = tmp_path / "data" / source.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / source.filename).write_text(text, encoding="utf-8")
        made_up = source._replace(sha256=hashlib.sha256(text.encode()).hexdigest())
        monkeypatch.setitem(sources.SOURCES, name, made_up)
        return tmp_path / "data"

    return write


@pytest.fixture
def humour(publish: Callable[[str, str], Path]) -> Path:
    publish(
        "ukp_humour_items", json_lines([{"id": 3 * i, "text": f"joke {i} "} for i in range(20)])
    )
    pairs = [f"{3 * a},{3 * b},{a % 4},{1 + b}" for a in range(20) for b in range(a)]
    return publish("ukp_humour_pairs", "a,b,votes_a,votes_b\n" + "\n".join(pairs) + "\n")
