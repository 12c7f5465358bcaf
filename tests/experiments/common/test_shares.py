import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common import sources
from experiments.common.shares import Group, load_shares
from experiments.common.sources import SourceError

GOOD: dict[str, Any] = {
    "prompt": "Tea?",
    "completions": ["yes", "no"],
    "shares": [0.25, 0.75],
    "n": 8,
}


def write(tmp_path: Path, *lines: dict[str, Any] | str) -> Path:
    path = tmp_path / "shares.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_both_sets_of_field_names(tmp_path: Path):
    other = {
        "id": "tea",
        "question": "Tea?",
        "options": ["yes", "no", "“never”"],
        "distribution": [0.5, 0.25, 0.25],
        "n": 100,
        "n_eff": 90.5,
        "group": {"attribute": "age", "value": "18-34"},
        "source": "ignored",
    }
    first, second = load_shares(write(tmp_path, GOOD, "", other))
    assert (first.id, first.prompt, first.completions) == ("Tea?", "Tea?", ("yes", "no"))
    assert (first.n, first.n_eff, first.group) == (8, 8.0, None)
    np.testing.assert_array_equal(first.shares, [0.25, 0.75])
    assert (second.id, second.completions[2], second.n_eff) == ("tea", "“never”", 90.5)
    assert second.group == Group("age", "18-34")


def test_rounded_shares_are_normalised_and_everybody_is_no_group(tmp_path: Path):
    everybody = {"attribute": "all", "value": "all"}
    rounded = {**GOOD, "shares": [0.3333, 0.6666], "group": everybody}
    (record,) = load_shares(write(tmp_path, rounded))
    assert record.shares.sum() == 1.0
    assert record.group is None


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"shares": [0.5, 0.6]}, "shares", r"a sum of 1 within 0\.001, found 1\.1\. Divide"),
    ({"shares": [1.25, -0.25]}, "shares", r"no negative number, found -0\.25"),
    ({"shares": [0.5, 0.25, 0.25]}, "shares", "2 numbers, one a completion, found '3 numbers'"),
    ({"shares": [0.5, None]}, "shares", r"a list of numbers, found \[0\.5, None\]"),
    ({"shares": [0.5, float("nan")]}, "shares", "a list of numbers, found .*NaN"),
    ({"shares": "0.5 0.5"}, "shares", "a list of numbers, found '0.5 0.5'"),
    ({"completions": ["yes"]}, "completions", r"2 or more distinct strings, found \['yes'\]"),
    ({"completions": ["yes", "yes"]}, "completions", r"found \['yes'\]\. Merge"),
    ({"completions": ["yes", 3]}, "completions", "a non-empty string, found 3"),
    ({"completions": "yes, no"}, "completions", "found 'yes, no'"),
    ({"prompt": " "}, "prompt", "a non-empty string, found ' '"),
    ({"prompt": None}, "prompt", "a non-empty string, found None"),
    ({"question": "Tea?"}, "prompt", r"exactly one of prompt, question, found \['prompt', 'quest"),
    ({"n": 0}, "n", "a whole number of people above 0, found 0"),
    ({"n": 8.5}, "n", "a whole number of people above 0, found 8.5"),
    ({"n": True}, "n", "a whole number of people above 0, found True"),
    ({"n_eff": 0}, "n_eff", "a number above 0, found 0"),
    ({"id": 7}, "id", "a non-empty string, found 7"),
    ({"group": "young"}, "group", "null or .* found 'young'. Leave"),
    ({"group": {"attribute": "age"}}, "group", "null or .* found {'attribute': 'age'}"),
    ({"group": {"attribute": "age", "value": 18}}, "group.value", "a non-empty string, found 18"),
]


@pytest.mark.parametrize(("change", "field", "message"), BAD)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], field: str, message: str):
    path = write(tmp_path, {**GOOD, "id": "other"}, {**GOOD, **change})
    with pytest.raises(SourceError, match=message) as error:
        load_shares(path)
    assert f"{path}, line 2, field '{field}': expected " in str(error.value)


@pytest.mark.parametrize("field", ["prompt", "completions", "shares", "n"])
def test_a_missing_field_is_named(tmp_path: Path, field: str):
    path = write(tmp_path, {name: value for name, value in GOOD.items() if name != field})
    with pytest.raises(SourceError, match=rf"line 1, field '{field}': expected .*found 'no such"):
        load_shares(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Tea?"', r"line 2, column 18: expected one JSON object, found '{\"prompt"),
        ("[1, 2]", r"line 2: expected a JSON object {...}, found '\[1, 2\]'"),
    ],
)
def test_what_is_not_an_object_is_named(tmp_path: Path, line: str, message: str):
    with pytest.raises(SourceError, match=message):
        load_shares(write(tmp_path, GOOD, line))


def test_contradicting_lines_are_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"line 3, field 'group'.* Line 1 has it already"):
        load_shares(write(tmp_path, GOOD, {**GOOD, "id": "other"}, GOOD))
    young = {"group": {"attribute": "age", "value": "young"}, "completions": ["no", "yes"]}
    with pytest.raises(SourceError, match="line 2, field 'id': expected the same prompt and compl"):
        load_shares(write(tmp_path, GOOD, {**GOOD, **young}))


def test_unreadable_files_are_named(tmp_path: Path):
    with pytest.raises(SourceError, match=r"absent\.jsonl: the file cannot be read \(No such file"):
        load_shares(tmp_path / "absent.jsonl")
    with pytest.raises(SourceError, match="found an empty file"):
        load_shares(write(tmp_path, ""))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(SourceError, match=r"latin\.jsonl: expected UTF-8"):
        load_shares(path)


def test_the_real_file(data_dir: Path):
    records = load_shares(sources.locate("shares", data_dir))
    assert len(records) == 1929
    assert sum(record.group is None for record in records) == 95
    assert len({record.id for record in records}) == 95
    assert all(2 <= len(record.completions) == len(record.shares) <= 12 for record in records)
