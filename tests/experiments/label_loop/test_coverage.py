"""How often intervals hold: the checks on made-up rounds, and a tiny run with stops."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.special import softmax

from experiments.label_loop import coverage, loop
from experiments.label_loop.config import Config, check
from experiments.label_loop.coverage import Check
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.label.folder import known_queries
from shatter.cli.label.project import open_project, utilities
from tests.cli.label.projects import write

ROWS = [
    {"prompt": "", "completions": [f"{x}{n}" for x in "ab"], "votes": [n % 5 + 1, 2]}
    for n in range(60)
]


def estimate(median, half=0.1):
    ends = {f"{end}{c}": median + sign * half * c / 80 for c in (80, 95) for end, sign in ENDS}
    return {"median": median, **ends}


ENDS = (("low", -1), ("high", 1))


def row(labels, pool_loss, **estimates):
    return {"labels": labels, "pool_loss": pool_loss, "estimates": estimates}


def test_estimates_meet_what_was_found_later():
    guess = {"loss": estimate(0.7), "next_loss": estimate(0.6), "gain": estimate(0.05)}
    name = "labels to a log-loss of 0.61"
    first = [row(10, 0.69, **guess, **{name: estimate(10.0)}), row(20, 0.64), row(30, 0.6)]
    second = [row(10, 0.70), row(20, 0.68, **guess, **{name: estimate(5.0)}), row(30, 0.66)]
    found = coverage.checks_of([first, second], 0.61)
    assert [check.truth for check in found["loss"]] == [0.69, 0.68]
    assert [check.truth for check in found["next_loss"]] == [0.64, 0.66]
    # The gain is the mean over seeds and over both rounds: (.09 + .04) / 4.
    np.testing.assert_allclose([check.truth for check in found["gain"]], [0.0325, 0.0325])
    assert [check[1:] for check in found[name]] == [(20, False), (10, True)]
    console = Console(width=200)
    with console.capture() as said:
        console.print(coverage.table({"loss": found["loss"]}, "title"))
    assert "loss │      2 │     1.00 │     1.00 │" in said.get()


def test_nothing_is_compared_with_the_loss_of_a_pool_that_was_asked_whole(tmp_path: Path):
    guess = {"loss": estimate(0.7), "next_loss": estimate(0.6), "gain": estimate(0.05)}
    losses = (0.69, 0.64, 0.6, float("nan"))
    rounds = [row(10 * n, loss, **guess) for n, loss in enumerate(losses, start=1)]
    run_folder.write_json(tmp_path / coverage.FILE, rounds)
    found = coverage.checks_of([coverage.read_rounds(tmp_path)], None)
    assert [check.truth for check in found["loss"]] == [0.69, 0.64, 0.6]
    assert [check.truth for check in found["next_loss"]] == [0.64, 0.6]
    np.testing.assert_allclose([check.truth for check in found["gain"]], [0.045])


@pytest.mark.slow
def test_a_pool_that_was_asked_whole_has_no_loss(loop_config, tmp_path: Path, monkeypatch):
    pool = write(tmp_path / "rows.jsonl", ROWS[:4])
    config = dataclasses.replace(loop_config(), pool=pool, project=str(tmp_path / "run"))
    project = open_project(config)
    assert np.isfinite(coverage.pool_loss(project))
    monkeypatch.setattr(coverage, "asked_items", lambda *_: set(project.pool.rows))
    assert np.isnan(coverage.pool_loss(project))


def test_a_truth_that_is_a_lower_bound_is_held_from_above():
    near = estimate(5.0, half=1.0)
    assert not coverage.is_held(Check(near, 10.0, is_censored=True), 80)
    assert coverage.is_held(Check(near, 3.0, is_censored=True), 80)
    assert not coverage.is_held(Check(near, 3.0), 80)
    assert coverage.is_held(Check(near | {"high80": np.inf}, 10.0), 80)


def test_intervals_of_95_hold_more_than_those_of_80():
    near = estimate(1.0, half=0.8)
    assert [coverage.is_held(Check(near, 1.9), c) for c in (80, 95)] == [False, True]


@pytest.mark.parametrize("changes", [{"rater": "model"}, {"audit_share": 0.0}])
def test_coverage_needs_votes_and_audits(loop_config, changes):
    config = loop_config(coverage=True, rater_model="x", **changes)
    with pytest.raises(UsageError, match="--coverage: expected --rater=recorded, and --audit_shar"):
        check(config)


@pytest.mark.slow
def test_every_round_is_noted_once(loop_config, tmp_path: Path):
    config: Config = loop_config(coverage=True, audit_share=0.5, num_queries=14, arm="random")
    pool = write(tmp_path / "rows.jsonl", ROWS)
    config = dataclasses.replace(config, pool=pool, project=str(tmp_path / "run"), until=0.6)
    say = lambda message, done: None
    loop.run(dataclasses.replace(config, num_rounds=1), say)
    file = Path(config.project) / coverage.FILE
    first = json.loads(file.read_text())
    assert [r["labels"] for r in first] == [7] and not first[0]["estimates"]  # 7 audits
    file.unlink()  # killed before it was written
    (project,) = loop.run(config, say)
    rounds = coverage.read_rounds(project.folder)
    assert rounds[0]["pool_loss"] == first[0]["pool_loss"]
    assert [r["labels"] for r in rounds] == [7, 14]
    assert {"loss", "labels to a log-loss of 0.6"} <= rounds[1]["estimates"].keys()
    # The loss by hand: every pair that was not asked, its votes by their share.
    project = open_project(config)
    asked = {query.completions for query in known_queries(project.folder).values()}
    losses = []
    for record in ROWS:
        texts, votes = tuple(record["completions"]), np.array(record["votes"])
        if texts not in asked:
            numbers = [project.pool.items.index(("", text)) for text in texts]
            law = softmax(utilities(project, np.array(numbers)), axis=1).mean(axis=0)
            losses.append(-votes @ np.log(law) / votes.sum())
    assert len(losses) == 60 - 28
    np.testing.assert_allclose(rounds[1]["pool_loss"], np.mean(losses), rtol=1e-5)
