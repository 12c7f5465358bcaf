"""The pipeline binary at a tiny size: its results, its resume, its warning."""

import csv
import json

import numpy as np
import pytest

from experiments.pipeline import run
from experiments.pipeline.config import Config

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 3,
    "vocab_size": 3,
    "max_length": 2,
    "num_rounds": 4,
    "queries_per_round": 2,
    "period": 2,
    "num_candidates": 3,
    "num_particles": 2,
    "num_members": 2,
    "num_steps": 1,
    "policy_steps": 2,
    "policy_batch": 2,
    "chunk_rounds": 2,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


NAMES = ("offline", "information_directed", "ilhf_passive", "dpo_online")


def test_a_run_writes_its_folder_and_is_resumed(tmp_path):
    config = tiny(tmp_path, algorithms=NAMES)
    run.experiment(config)
    folder = tmp_path / "default"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = ("pipeline", "pipeline", "ilhf", "dpo")
    found = {(row["objective"], row["arm"]) for row in rows}
    assert found == set(zip(kinds, NAMES, strict=True))
    starts = {
        (row["seed"], row["value"])
        for row in rows
        if row["metric"] == "population_to_limit" and row["step"] == "0"
    }
    assert len(starts) == 3  # all algorithms face the same problems
    by_round = {
        name: np.array(
            [
                float(row["value"])
                for row in rows
                if row["arm"] == name and row["metric"] == "kl_from_pretrained"
            ]
        ).reshape(3, 5)
        for name in ("offline", "information_directed")
    }
    np.testing.assert_allclose(by_round["offline"][:, :2], 0, atol=1e-6)  # until a period ends
    assert np.all(by_round["offline"][:, 2] == by_round["offline"][:, 3])
    assert np.all(by_round["information_directed"][:, 1] > 0)
    table = json.loads((folder / "summary.json").read_text())
    assert [row["algorithm"] for row in table] == list(NAMES)
    assert all(row["seconds"] > 0 for row in table)
    assert table[0]["area_less_reference"]["kl"]["mean"] == 0
    assert (folder / "default.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "runs" / "default" / "dpo_online" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before


def test_a_figure_of_one_flag_runs(tmp_path):
    small = {"max_length": 1, "num_seeds": 2, "algorithms": ("dpo_online",)}  # the fastest
    run.experiment(tiny(tmp_path, figure="selection", **small))
    assert (tmp_path / "selection" / "selection.png").exists()
    table = json.loads((tmp_path / "selection" / "summary.json").read_text())
    assert [row["setting"] for row in table] == [
        f"selection={value}" for value in ("variance", "random", "v_optimal")
    ]
    assert "end_less_reference" not in table[0]  # the first is what the others are compared with
    assert "end_less_reference" in table[1]


def test_a_transformer_learns_by_every_kind(tmp_path):
    algorithms = ("online", "ilhf_v_optimal")
    small = {"max_length": 1, "num_seeds": 2, "num_rounds": 2, "period": 1}
    run.experiment(tiny(tmp_path, figure="transformer", algorithms=algorithms, **small))
    table = json.loads((tmp_path / "transformer" / "summary.json").read_text())
    assert [row["algorithm"] for row in table] == list(algorithms)


def test_a_policy_that_collapses_is_told(tmp_path, capsys):
    run.experiment(
        tiny(
            tmp_path,
            algorithms=("online",),
            policy_rate=5.0,
            policy_steps=50,
            beta=1e-6,
            num_steps=8,
        )
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: default online: the policy says one thing in" in out
    assert "mean entropy" in out
