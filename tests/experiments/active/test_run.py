"""The active binary: its results at a tiny size, its levels and its errors."""

import csv
import json

import numpy as np
import pytest

from experiments.active import run, together
from experiments.active.config import Config, settings
from experiments.active.summary import level, summarise
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console

pytestmark = pytest.mark.slow  # whole runs of an experiment


def test_levels_and_censoring():
    queries = np.array([0, 10, 20, 40])
    random = np.array([[0.70, 0.68, 0.66, 0.64], [0.72, 0.70, 0.68, 0.66]])
    quick = random - np.array([0.0, 0.02, 0.02, 0.02])
    slow = random + np.array([0.0, 0.01, 0.02, 0.021])
    found = level(quick, random, queries, 0.5)
    assert (found["random_labels"], found["labels"], found["censored"]) == (20, 10, False)
    assert (found["level"], found["ratio"], found["seeds_censored"]) == (pytest.approx(0.67), 2, 0)
    assert (found["ratio_low"], found["ratio_high"]) == (2, 2)  # all seeds say so
    never = level(slow, random, queries, 1.0)
    assert never["censored"] and never["text"] == ">40 (100%)"
    assert never["ratio_text"].startswith("<1.00")
    own = level(random, random, queries, 0.25)
    assert (own["labels"], own["ratio"], own["random_labels"]) == (10, 1, 10)


def results_of(config, names=("random", "infomax")):
    found = {}
    for setting in settings(config):
        rng = np.random.default_rng(0)
        shape = (setting.num_seeds, len(setting.queries()))
        for arm in names:
            metrics = {
                name: 0.69 - 0.02 * np.linspace(0, 1, shape[1]) + 0.01 * rng.random(shape)
                for name in (
                    "new_log_loss",
                    "new_accuracy",
                    "known_log_loss",
                    "known_accuracy",
                    "new_brier",
                    "new_calibration_error",
                    "joint_log_loss",
                    "disagreement",
                    "decided",
                )
            }
            curve = {n: rng.random((*shape, 10)) for n in ("predicted", "observed", "count")}
            found[setting, arm] = metrics | {f"new_{name}": v for name, v in curve.items()}
    return found


def test_a_report_holds_tables_and_figures(tmp_path, capsys):
    config = Config(
        num_seeds=3, batches=(5, 10), until=(20, 60), ensembles=("laplace", "heads", "epinet")
    )
    results = results_of(config)
    (laplace, _), *_ = results
    assert laplace.queries() == [0, 5, 10, 15, 20, 30, 40, 50, 60]
    run.report(config, results, tmp_path, open_console())
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["setting"] for row in rows} == {"laplace", "heads", "epinet"}
    assert "new_predicted" not in {row["metric"] for row in rows}
    table = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["ensemble"], row["arm"]) for row in table] == [
        (setting.kind, arm) for setting, arm in results
    ]
    random = summarise(laplace, "random", results)
    assert random["at"]["all"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    gap = results[laplace, "infomax"]["new_log_loss"] - results[laplace, "random"]["new_log_loss"]
    found = summarise(laplace, "infomax", results)
    assert found["at"]["all"]["labels"] == 60 and found["at"]["quarter"]["labels"] == 15
    assert found["at"]["all"]["difference"]["mean"] == pytest.approx(gap[:, -1].mean())
    assert found["at"]["quarter"]["difference"]["mean"] == pytest.approx(gap[:, 3].mean())
    for name in ("active", "calibration"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert "times fewer" in capsys.readouterr().out
    folder = tmp_path / "runs" / "ukp_humour"
    folder.mkdir(parents=True)
    (tmp_path / "summary.json").rename(folder / "summary.json")
    titles, *rows = together.rows_of(tmp_path / "runs")
    assert [row[:5] for row in rows[:2]] == [
        ["ukp_humour", "laplace", arm, "3", "60"] for arm in ("random", "infomax")
    ]
    assert {len(row) for row in rows} == {len(titles)}
    assert rows[0][titles.index("less random")] == "0.0000 [0.0000, 0.0000]"
    with pytest.raises(UsageError, match=r"no subfolder with a summary.json: run experiments"):
        together.rows_of(tmp_path / "nothing")


def test_the_level_is_of_randoms_curve_made_monotone():
    queries = np.array([0, 10, 20, 40])
    random = np.array([[0.70, 0.66, 0.68, 0.64]] * 2)
    own = level(random, random, queries, 0.5)
    assert (own["level"], own["labels"], own["random_labels"]) == (0.66, 10, 20)
    slow = random + np.array([0.0, 0.03, 0.0, 0.0])
    assert level(slow, random, queries, 0.5)["labels"] == 40  # .68 is not yet the level


def test_bad_flags(tmp_path):
    bad = {
        r"unknown data set 'jokes'; the known ones are: ukp_humour": {"dataset": "jokes"},
        r"unknown arm 'lucky'; the known ones are: random, passive": {"arms": ("lucky",)},
        r"unknown utility 'odd'; the known ones are: ratio, tilt, sum": {"utility": "odd"},
        r"unknown ensemble 'trees'; the known ones are: laplace, heads": {"ensembles": ("trees",)},
        r"--num_seeds must be at least 2, found 1": {"num_seeds": 1},
        r"each stage must be a whole number .* found \(30,\) and \(100,\)": {
            "batches": (30,),
            "until": (100,),
        },
        r"--num_candidates must be at least 50, found 40": {"num_candidates": 40},
        r"--learning_rate must be positive, found nan": {
            "learning_rate": float("nan"),
            "ensembles": ("heads",),
        },
        r"--prior_scale must be positive, found 0": {"prior_scale": 0.0},
        r"--num_design must be at least 50, found 49": {"num_design": 49},
        r"--num_depths must be at least 1, found 0": {"num_depths": 0},
    }
    for message, flags in bad.items():
        with pytest.raises(UsageError, match=message):
            run.experiment(Config(run_dir=str(tmp_path), **flags))


def assert_same_numbers(folder, other, ensemble: str):
    one, same = (
        [row for row in csv.DictReader(text.splitlines()) if row["setting"] == ensemble]
        for text in ((place / "metrics.csv").read_text() for place in (folder, other))
    )
    assert one
    for row, found in zip(one, same, strict=True):
        value, near = float(row.pop("value")), float(found.pop("value"))
        assert row == found
        np.testing.assert_allclose(near, value, rtol=1e-5, atol=1e-5, err_msg=str(row))


def test_a_whole_run(tmp_path, data_dir):
    flags = {
        "run_dir": str(tmp_path),
        "data_dir": str(data_dir),
        "num_seeds": 2,
        "num_members": 2,
        "num_steps": 1,
        "batches": (4,),
        "until": (12,),
        "num_candidates": 8,
        "num_design": 8,
        "num_components": 5,
        "model_name_or_path": "stories260k",
        "held_out_pairs": 10,
        "max_length": 12,
        "adapter_length": 12,
        "ensembles": ("laplace", "heads", "adapters"),
        "arms": ("v_optimal",),
    }
    run.experiment(Config(**flags))
    folder = tmp_path / "ukp_humour"
    before = (folder / "metrics.csv").read_text()
    run.experiment(Config(**flags))
    assert (folder / "metrics.csv").read_text() == before
    # The ensemble that most depends on the devices.
    on_mesh = {"run_dir": str(tmp_path / "mesh"), "mesh": "seed=2,member=2"}
    run.experiment(Config(**{**flags, **on_mesh, "ensembles": ("adapters",)}))
    assert_same_numbers(folder, tmp_path / "mesh" / "ukp_humour", "adapters")
    for kind in ("laplace", "heads", "adapters"):
        assert {file.name for file in (folder / "arms" / kind).iterdir()} == {"random", "v_optimal"}
    with pytest.raises(UsageError, match=r"ends at 20000 queries, and a pool of ukp_humour has 10"):
        run.experiment(Config(**{**flags, "until": (20000,), "run_dir": str(tmp_path / "large")}))


def test_the_utility_of_adapters_is_the_flags():
    (setting,) = settings(Config(ensembles=("adapters",), utility="sum"))
    assert setting.learner.utility == "sum"
