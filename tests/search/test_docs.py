"""The quickstart of docs/search.md runs as it stands, and prints what the page says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_quickstart(capsys: pytest.CaptureFixture[str]):
    """Its rewards are those of the page, to a tenth."""
    blocks = re.search(r"^```python\n(.*?)^```\n```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    example, printed = blocks.groups()
    exec(example, {})
    found = capsys.readouterr().out.splitlines()
    for line, other in zip(found, printed.splitlines(), strict=True):
        assert re.findall(r"[a-z]+", line) == re.findall(r"[a-z]+", other)
        numbers, others = (list(map(float, re.findall(r"[\d.]+", x))) for x in (line, other))
        assert all(abs(a - b) < 0.1 + 0.05 * b for a, b in zip(numbers, others, strict=True))
