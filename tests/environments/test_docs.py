"""The examples of docs/agents.md run in their order, and the page is short."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 120


@pytest.mark.slow
def test_examples_run_as_they_stand(capsys: pytest.CaptureFixture[str]):
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert "call" in printed.splitlines()[0]
    assert "of" in printed
    assert re.search(r"^quoted\.\nanswer \w+$", printed, re.MULTILINE)
