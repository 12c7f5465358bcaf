"""A run folder belongs to one config, and its files are whole or absent."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest

from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    run_dir: str = "unused"
    num_seeds: int = 3
    arms: tuple[str, ...] = ("a",)


def opened(path, config=Config()):
    with run_folder.open_run_folder(str(path), config) as folder:
        return folder


def test_a_folder_is_made_and_opened_again_with_the_same_config(tmp_path):
    folder = opened(tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    flags = {"run_dir": "unused", "num_seeds": 3, "arms": ["a"]}
    assert record == flags | {"checksum": record["checksum"]}
    assert opened(folder, Config(run_dir="elsewhere")) == folder
    assert json.loads((folder / "config.json").read_text()) == record


@dataclasses.dataclass(frozen=True)
class WithUnset(Config):
    note: str | None = None


@pytest.mark.parametrize("damage", [("unused", "unuzed"), ("run_dir", "rum_dir"), ("note", "nota")])
def test_damage_is_found_in_flags_that_may_differ_or_are_not_set(tmp_path, damage):
    """A name whose value is null would else be taken for a flag of an older version."""
    folder = opened(tmp_path / "run", WithUnset())
    file = folder / "config.json"
    file.write_text(file.read_text().replace(*damage))
    with pytest.raises(UsageError, match=r"config\.json is damaged or was changed by hand"):
        opened(folder, WithUnset())
    assert damage[1] in file.read_text()


def test_a_folder_of_an_older_version_is_opened(tmp_path):
    """It has neither the fields that may differ nor facts that are new."""
    (tmp_path / "config.json").write_text('{"num_seeds": 3, "arms": ["a"], "data": "abc"}')
    with run_folder.open_run_folder(str(tmp_path), Config(), data="abc", held_out=["x"]):
        pass
    with pytest.raises(UsageError, match=r"data: found 'abc', wanted 'abd'"):
        with run_folder.open_run_folder(str(tmp_path), Config(), data="abd", held_out=["x"]):
            raise AssertionError("it was opened")


def test_a_flag_that_an_older_version_did_not_have_is_compared_only_if_it_is_set(tmp_path):
    (tmp_path / "config.json").write_text('{"arms": ["a"]}')
    opened(tmp_path)
    with pytest.raises(UsageError, match=r"num_seeds: found None, wanted 4"):
        opened(tmp_path, Config(num_seeds=4))


def test_fields_that_are_recorded_apart_are_neither_written_nor_compared(tmp_path):
    begin = lambda config: run_folder.begin_or_resume(
        str(tmp_path), config, apart=("run_dir", "arms"), flag="--run_dir"
    )
    begin(Config())
    assert json.loads((tmp_path / "config.json").read_text()) == {"num_seeds": 3}
    begin(Config(run_dir="elsewhere", arms=()))


def test_paths_that_may_differ_are_named_where_a_checksum_does(tmp_path):
    begin = lambda arms, data: run_folder.begin_or_resume(
        str(tmp_path), Config(arms=arms), free=("run_dir", "arms"), flag="--run_dir", data=data
    )
    begin(("a",), "abc")
    begin(("b",), "abc")
    message = r"\(data: found 'abc', wanted 'abd'; arms: found \['a'\], wanted \['b'\]; found in"
    with pytest.raises(UsageError, match=message):
        begin(("b",), "abd")


def test_another_config_is_refused_with_both_values(tmp_path):
    opened(tmp_path)
    with pytest.raises(UsageError, match=r"num_seeds: found 3, wanted 5; found in .*config\.json"):
        opened(tmp_path, Config(num_seeds=5))


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UsageError, match=r"holds files but no config\.json"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"\xff\x00\x80", "can't decode"),
        (b"null", "expected an object, found NoneType"),
        (b"[1]", "expected an object, found list"),
        (b'"x"', "expected an object, found str"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_config_is_named_and_left(tmp_path, content, found):
    opened(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=rf"config\.json is damaged \(.*{found}") as error:
        opened(tmp_path)
    assert "delete the folder, or choose another --run_dir" in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("inner", [".", "arms/default/passive"])
def test_what_a_killed_process_had_half_written_is_removed(tmp_path, inner):
    folder = opened(tmp_path / "run")
    left = folder / inner / ".summary.json.12345-aabbccdd.tmp"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("{")
    opened(folder)
    assert not left.exists()


def test_temporary_files_of_the_user_are_left(tmp_path):
    mine = [tmp_path / name for name in ("thesis.tmp", ".draft.tmp", ".x.12-abc.tmp")]
    for file in mine:
        file.write_text("ten years of work")
    with pytest.raises(UsageError, match=r"holds files but no config\.json"):
        opened(tmp_path)
    assert all(file.exists() for file in mine)


def test_files_have_the_permissions_that_the_user_set(tmp_path):
    before = os.umask(0o027)
    try:
        run_folder.write_text(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_json_has_no_number_that_is_not_finite(tmp_path):
    rows = [{"kl": float("nan"), "levels": (float("inf"), 1.5)}, {"kl": -float("inf")}]
    run_folder.write_json(tmp_path / "summary.json", rows)
    found = run_folder.read_json(tmp_path / "summary.json", list)
    assert found == [{"kl": None, "levels": [None, 1.5]}, {"kl": None}]


def test_rows_of_metrics(tmp_path):
    metrics = {"kl": np.array([[2.0, 1.0], [3.0, 0.5]])}
    rows = run_folder.metric_rows("default", "dpo", "infomax", np.array([0, 8]), metrics)
    run_folder.write_csv(tmp_path / "metrics.csv", rows)
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == run_folder.CSV_COLUMNS
    assert [(r["seed"], r["step"], float(r["value"])) for r in table] == [
        ("0", "0", 2.0),
        ("0", "8", 1.0),
        ("1", "0", 3.0),
        ("1", "8", 0.5),
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_arrays_round_trip(tmp_path):
    arrays = {"kl": np.arange(6.0).reshape(2, 3)}
    run_folder.save_arrays(tmp_path / "deep" / "metrics.npz", arrays)
    loaded = run_folder.load_arrays(tmp_path / "deep" / "metrics.npz")
    np.testing.assert_array_equal(loaded["kl"], arrays["kl"])
