"""A run folder belongs to one config; what is written is whole or absent."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from experiments.common import run_folder
from experiments.common.binary import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    run_dir: str = "unused"
    num_seeds: int = 3
    arms: tuple[str, ...] = ("a",)


def test_a_folder_is_made_and_opened_again_with_the_same_config(tmp_path):
    folder = run_folder.open_run_folder(str(tmp_path / "run"), Config())
    assert json.loads((folder / "config.json").read_text()) == {"num_seeds": 3, "arms": ["a"]}
    assert run_folder.open_run_folder(str(folder), Config(run_dir="elsewhere")) == folder


def test_another_config_is_refused_with_both_values(tmp_path):
    run_folder.open_run_folder(str(tmp_path), Config())
    with pytest.raises(UsageError, match=r"num_seeds: found 3, wanted 5.*another --run_dir"):
        run_folder.open_run_folder(str(tmp_path), Config(num_seeds=5))


def test_a_damaged_config_and_a_foreign_folder_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UsageError, match=r"holds files but no config\.json"):
        run_folder.open_run_folder(str(tmp_path), Config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        run_folder.open_run_folder(str(tmp_path), Config())


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
