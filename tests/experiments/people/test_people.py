"""Polls are read and divided as said, heads are optima, and a tiny run is whole and resumable."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, rel_entr

from experiments.people import export, inputs, learners, measures, polls, run
from experiments.people.config import Config, check
from experiments.people.persons import Options, draw_followed, person_losses
from experiments.people.polls import Poll, Question
from shatter import data
from shatter.cli.common.binary import UsageError


def made_up(num_questions: int = 12, num_people: int = 30) -> Poll:
    """Returns a poll of two groups who want opposite things; a battery is two questions."""
    rng = np.random.default_rng(0)
    questions = [
        Question(f"{'abcd'[n % 4]}", (" a", " b", " c")[: 2 + n % 2], f"battery {n // 2}")
        for n in range(num_questions)
    ]
    counts = np.zeros((num_questions, 3, 3))
    answers = []
    for person in range(num_people):
        for n, question in enumerate(questions):
            best = person % 2 if rng.random() < 0.8 else int(rng.integers(len(question.options)))
            counts[n, [0, 1 + person % 2], best] += 1
            answers.append((person, n, best))
    people = 1 + np.arange(num_people) % 2
    return Poll(questions, ("a", "b"), counts, np.array(answers), people)


def test_new_questions_are_whole_batteries():
    poll = made_up()
    for seed in range(5):
        is_new = polls.new_questions(poll, np.random.default_rng(seed))
        assert 0.2 <= is_new.mean() <= 0.4
        assert (is_new[::2] == is_new[1::2]).all()
    fewer = polls.draw_questions(poll, 5, np.random.default_rng(0))
    assert len(fewer.questions) == 5 and len(fewer.counts) == 5
    question = fewer.questions[3]
    number = poll.questions.index(question)
    assert (fewer.answers[:, 1] == 3).sum() == (poll.answers[:, 1] == number).sum()


def test_lines_for_fine_tuning_are_read_back(tmp_path: Path, monkeypatch, capsys):
    poll = made_up()
    questions = [q._replace(prompt=f"{q.unit}: {n}") for n, q in enumerate(poll.questions)]
    poll = poll._replace(questions=questions)
    monkeypatch.setattr(export, "load_poll", lambda name, data_dir: poll)
    export.export(export.Config(folder=str(tmp_path)))
    rows, _ = data.read_rows(tmp_path / "train.jsonl")
    assert data.group_sizes(rows) == {"a": 15, "b": 15}
    export.export(export.Config(folder=str(tmp_path), by="person", num_persons=4))
    train, new = (data.read_rows(tmp_path / f"{part}.jsonl")[0] for part in ("train", "new"))
    assert len(train) + len(new) == 4 * 12
    assert len({row.annotator for row in train}) == 4 and {row.group for row in train} <= {"a", "b"}
    prompts = [{row.prompt for row in part} for part in (train, new)]
    assert set.union(*prompts) == {question.prompt for question in questions}
    batteries = [{prompt.split(":")[0] for prompt in part} for part in prompts]
    assert not prompts[0] & prompts[1] and not batteries[0] & batteries[1]
    monkeypatch.setattr(export, "load_poll", lambda name, data_dir: poll._replace(groups=()))
    with pytest.raises(UsageError, match="has no groups: pass --by=person"):
        export.export(export.Config(folder=str(tmp_path)))


def test_a_persons_difference_is_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    x, base = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 5, 3))
    valid = np.ones((2, 5, 3), bool)
    valid[0, 2, 2] = False
    choices, counted = rng.integers(0, 2, (2, 5)), np.ones((2, 5), bool)
    counted[1, 3:] = False
    found = learners.fit_people(x, base, valid, choices, counted, 0.7)
    for person in range(2):

        def loss(d, person=person):
            law = log_softmax(np.where(valid[person], base[person] + x[person] @ d, -1e30), axis=1)
            chosen = law[np.arange(5), choices[person]]
            return d @ d / (2 * 0.7**2) - chosen[counted[person]].sum()

        best = minimize(loss, np.zeros(4), tol=1e-10).x
        np.testing.assert_allclose(found[person], best, atol=2e-4)


def test_a_group_is_everybody_and_a_difference():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(4, 2, 3)), np.array([0, 2, 1, 2])
    weights = rng.normal(size=9)
    utilities = learners.by_group(x, groups, 2, 0.5) @ weights
    differences = np.concatenate([[np.zeros(3)], weights[3:].reshape(2, 3)])
    expected = np.einsum("nkp,np->nk", x, weights[:3] + 0.5 * differences[groups])
    np.testing.assert_allclose(utilities, expected)


def test_measures_by_definition():
    valid = np.array([[True, True, False], [True, True, True]])
    laws = learners.log_law(np.array([[0.2, -0.1, 9.0], [0.3, 0.1, 0.0]]), valid)
    np.testing.assert_allclose(np.exp(laws).sum(axis=1), 1)
    counts = np.array([[3.0, 1.0, 0.0], [2.0, 0.0, 2.0]])
    shares = counts / 4
    np.testing.assert_allclose(
        measures.share_kl(laws, counts), rel_entr(shares, np.exp(laws)).sum(axis=1), rtol=1e-5
    )
    many = 4000 * np.exp(laws)
    floor = measures.noise_floor(laws, many, np.random.default_rng(0))
    assert floor == pytest.approx((1 + 2) / 2 / (2 * 4000), rel=0.2)  # (K - 1) / 2n
    bins = measures.calibration(laws, many, valid)
    assert measures.calibration_error(bins) == pytest.approx(0, abs=1e-12)
    assert sum(bins["number"]) == 5


@pytest.mark.slow
def test_scales_are_chosen_on_units_that_the_fit_has_not_seen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2, 3))
    shares = np.exp(learners.log_law(x @ [1.0, -1.0, 0.5], np.ones((60, 2), bool)))
    units = np.repeat(np.arange(12), 5)
    wanted = learners.choose_scale(x, shares, np.ones((60, 2), bool), units, (0.001, 3.0))
    assert wanted == 3.0
    noise = rng.dirichlet(np.ones(2), 60)
    wide = rng.normal(size=(60, 2, 40))
    assert learners.choose_scale(wide, noise, np.ones((60, 2), bool), units, (0.01, 30.0)) == 0.01


def test_n_grams_know_an_option_by_its_question():
    items = [("is red good ?", " yes"), ("is red bad ?", " yes"), ("is red good ?", " no")]
    features = inputs.gram_features([*items, *items])
    assert features.shape[0] == 6 and np.isfinite(features).all()
    assert not np.array_equal(features[0], features[1])
    assert not np.array_equal(features[0], features[2])
    found = inputs.gram_components(features, np.arange(6) < 5, 2)
    assert found.shape == (6, 2) and np.mean(found[:5] ** 2) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found[5], found[2], atol=1e-5)  # the same text


@pytest.mark.slow
def test_gains_are_over_no_answers_also_where_these_are_not_asked_for():
    poll = made_up()
    rng = np.random.default_rng(0)
    valid = np.arange(3) < np.array([[len(q.options)] for q in poll.questions])
    options = Options(rng.normal(size=(12, 3, 2)), rng.normal(size=(12, 3, 3)), valid)
    config = Config(dataset="polis", numbers_of_answers=(1, 2), max_persons=2)
    is_new = polls.new_questions(poll, rng)
    drawn = [draw_followed(config, poll, is_new, np.random.default_rng(s)) for s in (0, 1)]
    found = [person_losses(config, poll, options, followed) for followed in drawn]
    summary = run._summarise(found)
    for number in (1, 2):
        gains = [one["persons/log_loss_0"] - one[f"persons/log_loss_{number}"] for one in found]
        assert summary[f"persons/gain_{number}"]["mean"] == pytest.approx(np.mean(gains))
    gains = [one["persons/blind_log_loss_0"] - one["persons/log_loss_0"] for one in found]
    assert summary["persons/gain_group"]["mean"] == pytest.approx(np.mean(gains))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "x"}, "unknown data set .x.; .* survey_opinions"),
        ({"beta": -1.0}, "--beta must be"),
        ({"num_seeds": 1}, "--num_seeds must be at least 2"),
        ({"numbers_of_answers": (-1,)}, "--numbers_of_answers must be"),
    ],
)
def test_bad_flags(changes, message):
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(Config(), **changes))
    check(Config())


@pytest.mark.slow
def test_a_tiny_run(make_model, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "load_poll", lambda name, data_dir: made_up())
    make_model(tmp_path / "tiny", 2)
    config = Config(
        dataset="polis",
        model_name_or_path=str(tmp_path / "tiny"),
        run_dir=str(tmp_path / "runs"),
        num_seeds=2,
        num_components=3,
        num_depths=1,
        max_length=16,
        max_persons=5,
        numbers_of_answers=(2,),
    )
    run.experiment(config)
    folder = tmp_path / "runs" / "polis"
    summary = json.loads((folder / "summary.json").read_text())
    assert (folder / "people.png").stat().st_size > 10_000
    # The groups want opposite things, and only a head that knows the group can say so.
    assert summary["group_difference/group_kl"]["mean"] < summary["head/group_kl"]["mean"] - 0.05
    assert summary["persons/log_loss_0"]["mean"] < summary["persons/blind_log_loss_0"]["mean"]
    assert "Polis" in capsys.readouterr().out
    # A run that was killed goes on, and what is complete is only read.
    before = (folder / "metrics.csv").read_text()
    (folder / "seeds" / "seed1.json").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    monkeypatch.setattr(run, "run_seed", None)
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    # Other data under the same name is another run.
    other = made_up()._replace(counts=2 * made_up().counts)
    monkeypatch.setattr(run, "load_poll", lambda name, data_dir: other)
    with pytest.raises(UsageError, match="data_sha256"):
        run.experiment(config)
    monkeypatch.setattr(run, "load_poll", lambda name, data_dir: made_up())
    make_model(tmp_path / "tiny", 1)
    with pytest.raises(UsageError, match="weights: found"):
        run.experiment(config)
