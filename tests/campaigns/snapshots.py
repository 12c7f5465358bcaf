"""What a folder holds, so far as the same run must leave the same."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from shatter.cli.common.run_folder import CHECKSUM
from shatter.cli.finetune.config import FREE

VARYING = ("seconds", "tokens_per_second", "time", "event_id", "template_date")
"""Fields that differ between two runs of the same command."""


def snapshot(folder: Path) -> dict[str, Any]:
    """Every file below a folder, with its content as far as that must be the same.

    Of orbax's folders the names of the steps alone: what is in them is compared by what a run makes
    of it. Of locks, and checksums of files that vary, the name.

    Args:
      folder: the folder.

    Returns:
      Contents by relative path.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if match := re.search(r"(^|.*/)(ensemble|checkpoints)/[^/]+", name):
            found[match[0]] = None
        elif path.is_dir():
            found[name + "/"] = None
        elif path.name.endswith((".lock", ".sha256", ".confirmed")):
            found[name] = None
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif path.name == "config.json":
            found[name] = _compared(_steady(json.loads(path.read_text())))
        elif path.suffix in (".json", ".jsonl"):
            found[name] = [_steady(json.loads(line)) for line in _lines(path)]
        else:
            found[name] = path.read_bytes()
    return found


def _compared(record: Any) -> Any:
    """Returns the flags that a run has recorded, without those that no later command compares.

    The checksum is of all of them; the next command compares it.
    """
    if not isinstance(record, dict):
        return record
    is_finetune = {"objective", "dataset_name", "output_dir"} <= record.keys()
    uncompared = (*(FREE if is_finetune else ("run_dir",)), CHECKSUM)
    return {name: value for name, value in record.items() if name not in uncompared}


def _lines(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VARYING}
    return [_steady(v) for v in value] if isinstance(value, list) else value


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first difference in words; None if there is none.

    Args:
      found: of `snapshot`.
      expected: of another.

    Returns:
      The kind of difference.
    """
    steady = lambda name: re.sub(r"\d{3,}", "N", name)  # process ids
    if left := sorted(found.keys() - expected.keys()):
        return f"left behind: {', '.join(dict.fromkeys(map(steady, left)))}"
    if missing := sorted(expected.keys() - found.keys()):
        return f"missing: {', '.join(dict.fromkeys(map(steady, missing)))}"
    other = [name for name in expected if found[name] != expected[name]]
    return f"differs: {', '.join(other)}" if other else None
