"""The iia binary at a tiny size: its results, its resume, its errors; and what it learns."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import chunks
from experiments.iia import exact, run, summary, trained
from experiments.iia.config import Config
from experiments.iia.objectives import make_objectives
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "objectives": ("ilhf", "dpo"),
    "sizes": (2, 3),
    "correlations": (0.0,),
    "vocab_size": 2,
    "num_seeds": 2,
    "num_rounds": 4,
    "num_steps": 2,
    "num_queries": 8,
    "chunk_rounds": 2,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path / "run"), **{**TINY, **changes})


def test_a_run_writes_its_folder_and_is_resumed(tmp_path, capsys):
    config = tiny(tmp_path)
    run.experiment(config)
    folder = tmp_path / "run"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["setting", "objective", "arm", "seed", "step", "metric", "value"]
    curve = [
        row
        for row in rows
        if (row["setting"], row["objective"]) == ("choice K=3 correlation=1 share=0.4", "dpo")
        and row["metric"] == "gap"
    ]
    steps = {
        arm: [int(r["step"]) for r in curve if r["arm"] == arm] for arm in ("exact", "trained")
    }
    assert steps == {"exact": [0], "trained": 2 * [0, 2, 4, 6, 8]}
    table = json.loads((folder / "summary.json").read_text())
    assert {row["answer"] for row in table} == {"choice", "ties", "ranking", "davidson"}
    assert {row["share"] for row in table} == {0.4, 0.6}
    wrong = {(row["answer"], row["size"]) for row in table if row["wrong"]}
    assert wrong == {("choice", 3)}  # 2 > 1.5 duplicates; .6 of ties turns at a size beyond
    trained_rows = [row for row in table if "trained" in row]
    assert len(trained_rows) == 2 * 2 * 2  # objectives, sizes, correlations
    assert (folder / "iia.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "objectives" / "dpo" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    assert "dpo: exact" in capsys.readouterr().out


def test_a_transformer_learns_without_ilhf(tmp_path):
    config = tiny(
        tmp_path,
        learner="transformer",
        objectives=("slic",),
        sizes=(3,),
        correlations=(),
        num_rounds=1,
        num_steps=1,
    )
    run.experiment(config)
    assert (tmp_path / "run" / "iia.png").exists()


@pytest.mark.parametrize("name", ["reward_model", "dpo"])
def test_training_ends_where_the_exact_loss_is_least(tmp_path, name):
    config = tiny(tmp_path, vocab_size=4, num_queries=64, num_seeds=4, num_rounds=10, num_steps=15)
    process = trained.make_process(config, name, make_objectives(config)[name])
    plan = chunks.equal_chunks(10, 64, 10)
    metrics = chunks.run_seeds(process, summary.inputs(config), tmp_path, plan)
    for case, curves in summary.split_cases(config, metrics).items():
        gap = summary.closed_form(case, name, config)
        assert curves["gap"][:, -1].mean() == pytest.approx(gap, abs=0.1)
        share = exact.type_share(gap, 1, config.beta)  # of the policy p0 exp(r / beta) / Z
        assert curves["share"][:, -1].mean() == pytest.approx(share, abs=0.05)
        np.testing.assert_allclose(curves["gap"][:, 0], 0.0, atol=1e-6)
        np.testing.assert_allclose(curves["share"][:, 0], 0.5, atol=1e-6)


def test_queries_are_of_one_message_of_type_1_and_distinct_ones_of_type_2():
    config = Config(vocab_size=4, sizes=(2, 6), num_queries=2000)  # 8 messages of either type
    population = trained.Population(jnp.asarray(5), jnp.asarray(0.4))
    items, valid = trained._draw_queries(jax.random.key(0), config, population)
    assert valid.tolist() == [True] * 5 + [False]
    shown = np.asarray(items)
    assert (shown[:, 0] < 8).all() and (shown[:, 1:] >= 8).all()
    assert all(len(set(row)) == 6 for row in shown.tolist())
    counts = np.bincount(shown[:, 0], minlength=8), np.bincount(shown[:, 2] - 8, minlength=8)
    np.testing.assert_allclose(counts, 250, atol=5 * 250**0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("ppo",)}, "unknown objective 'ppo'; the known ones are: reward_model, il"),
        ({"share": 0.0}, r"--share must be between 0 and 1, at least 1e-06 from both, found 0.0"),
        ({"share": 1.0}, "--share must be between 0 and 1"),
        ({"share": float("nan")}, "--share must be between 0 and 1"),
        ({"sizes": (2, 4)}, r"--sizes must be between 2 and 3, .* found \(2, 4\)"),
        ({"sizes": ()}, "--sizes must be between 2 and 3"),
        ({"vocab_size": 3}, "--vocab_size must be even, found 3"),
        ({"correlations": (1.5,)}, r"--correlations must be between 0 and 1, found \(1.5,\)"),
        ({"num_seeds": 1}, "--num_seeds must be at least 2, found 1"),
        ({"beta": 0.0}, "--beta must be positive, found 0.0"),
    ],
)
def test_bad_flags(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(tmp_path, **changes))
