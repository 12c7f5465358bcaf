import json
from pathlib import Path

import pytest

from tests.campaigns.tally import Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property) -> Tally:
    """Counts for the report; the test calls `settle` at its end."""
    return Tally(request.node.name.removeprefix("test_"), record_property)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Log-probs of the reference are kept here, and stray relative paths end here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two blocks, whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 2)
    file = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl, held.jsonl and pool.jsonl."""
    folder = tmp_path_factory.mktemp("files")
    letters = "abcdefgh"
    pairs = [{"prompt": f"{c} ", "chosen": f"a{c}", "rejected": f"b{c}{c}"} for c in letters]
    pool = [{"prompt": f"{c} ", "completions": ["a", "bb", f"ab {c}"]} for c in letters[:5]]
    for name, some in (("pairs", pairs), ("held", pairs[:3]), ("pool", pool)):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text)
    return folder
