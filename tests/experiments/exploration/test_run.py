"""The exploration binary at a tiny size: its results, its resume, its errors."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.chunks import Chunk
from experiments.exploration import run, summary
from experiments.exploration.arms import ARMS
from experiments.exploration.config import Config, settings
from experiments.exploration.process import make_process
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 3,
    "num_members": 2,
    "vocab_size": 3,
    "max_length": 2,
    "num_rounds": 4,
    "queries_per_round": 2,
    "num_candidates": 3,
    "num_steps": 1,
    "chunk_rounds": 2,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def test_a_run_writes_its_folder_and_is_resumed(tmp_path, capsys):
    config = tiny(tmp_path, arms=("greedy", "infomax"))
    run.experiment(config)
    folder = tmp_path / "default"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = {row["arm"] for row in rows}
    assert arms == {
        "greedy",
        "infomax",
        "passive",
        "passive_map",
    }  # with a baseline for each learner
    kl = [row for row in rows if row["metric"] == "kl" and row["arm"] == "infomax"]
    assert len(kl) == 3 * 5
    assert sorted({int(row["step"]) for row in kl}) == [0, 2, 4, 6, 8]
    starts = {
        (row["seed"], row["value"])
        for row in rows
        if row["metric"] == "pretrained_kl" and row["step"] == "0"
    }
    assert len(starts) == 3  # all arms face the same problems
    table = json.loads((folder / "summary.json").read_text())
    assert {row["arm"] for row in table} == arms
    assert (folder / "default.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "arms" / "default" / "infomax" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    assert "infomax" in capsys.readouterr().out


@pytest.mark.parametrize(
    "figure", ["difficulty", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_other_figures(tmp_path, figure):
    small = {"max_length": 1, "num_rounds": 4, "num_steps": 1}
    config = tiny(tmp_path, figure=figure, arms=("thompson",), **small)
    plans = settings(config, tuple(ARMS))
    if figure == "difficulty":
        assert [s.config.max_length for s in plans] == [3, 4, 5, 6]
        return
    run.experiment(config)
    assert (tmp_path / figure / f"{figure}.png").exists()


def test_queries_of_three_responses_are_ranked(tmp_path):
    (setting,) = settings(tiny(tmp_path, num_responses=3, arms=("uniform",)), ("uniform",))
    start, rounds = make_process(setting, "uniform")

    @jax.jit
    def run(key):
        (_, state, _), metrics = rounds(start(key)[0], jnp.asarray(0), Chunk(2, 2))
        return state.store.comparisons.ranks, metrics["kl"]

    ranks, kl = run(jax.random.key(0))
    np.testing.assert_array_equal(np.sort(ranks[:4], axis=1), [[1, 2, 3]] * 4)
    assert len(np.unique(ranks[:4], axis=0)) > 1
    assert np.isfinite(kl).all()


def test_bad_flags(tmp_path):
    with pytest.raises(UsageError, match=r"unknown arm 'lucky'; the known ones are: uniform, pas"):
        run.experiment(tiny(tmp_path, arms=("lucky",)))
    with pytest.raises(UsageError, match=r"--num_seeds must be at least 2, found 1"):
        run.experiment(tiny(tmp_path, num_seeds=1))
    with pytest.raises(UsageError, match=r"at most 100000, .* found 4 \*\* 12 = 16777216"):
        run.experiment(tiny(tmp_path, vocab_size=4, max_length=12))
    with pytest.raises(UsageError, match=r"--num_responses must be from 2 to 4, .* found 5"):
        run.experiment(tiny(tmp_path, num_responses=5))
    with pytest.raises(UsageError, match=r"--num_candidates must be at least 4, found 3"):
        run.experiment(tiny(tmp_path, num_responses=4, vocab_size=4))
    with pytest.raises(UsageError, match=r"--spread must be positive, found nan"):
        run.experiment(tiny(tmp_path, spread=float("nan")))


def test_censored_levels_are_bounds(tmp_path):
    (setting,) = settings(tiny(tmp_path, arms=("infomax",)), ("infomax",))
    queries = np.arange(5) * 2
    start = np.full((3, 5), 2.0)
    reached = np.array([[2.0, 1.5, 0.9, 0.6, 0.2]] * 3)
    never = np.array([[2.0, 1.9, 1.8, 1.7, 1.6]] * 3)
    results = {
        (setting, "infomax"): {"kl": reached, "pretrained_kl": start},
        (setting, "passive"): {"kl": never, "pretrained_kl": start},
    }
    row = summary.summarise(setting, "infomax", results, queries)
    assert row["half"]["median_queries"] == 4
    assert row["half"]["ratio"] == 0.5  # of 8, the budget within which passive did not get there
    assert row["half"]["ratio_text"].startswith("<0.50")
    passive = summary.summarise(setting, "passive", results, queries)
    assert passive["half"]["text"] == ">8 (100%)"
    assert passive["half"]["ratio_text"] == "both censored"
