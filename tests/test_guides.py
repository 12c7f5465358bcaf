"""The quickstarts of the guides run as they stand, and print what the guides say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["agents", "search"])
def test_quickstart(guide: str, tmp_path: Path):
    """In an interpreter and a folder of its own; a line's words are those of the guide."""
    text = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
    example, printed = re.search(
        r"^```python\n(.*?)^```\n```\n(.*?)^```$", text, re.S | re.M
    ).groups()
    answer = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    words = lambda lines: [re.findall(r"[a-z]+", line) for line in lines.splitlines()]
    assert words(answer.stdout) == words(printed)
