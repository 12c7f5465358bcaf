"""Audits: drawn at random, kept apart through stops and imports, and what they forecast."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from shatter import evaluation
from shatter.cli.label import asking, run, tables
from shatter.cli.label.answers import current_answers
from shatter.cli.label.audits import audit_losses, draw_audits, num_audits, with_audits
from shatter.cli.label.config import ExportConfig, ImportConfig, LearnConfig, ProposeConfig
from shatter.cli.label.folder import answer_file, known_queries
from shatter.cli.label.forecasts import NoForecast, advice, estimate, make_forecast, record_forecast
from shatter.cli.label.learn import learn, standing_answers
from shatter.cli.label.project import item_key, open_project, utilities
from shatter.cli.label.propose import propose
from shatter.cli.label.queries import is_audit
from shatter.cli.label.writer import open_writer
from tests.cli.label.conftest import copied
from tests.cli.label.projects import answer_all

pytestmark = pytest.mark.slow


def half(config: ProposeConfig, **changes) -> ProposeConfig:
    """Returns flags by which half of the queries are audits."""
    return dataclasses.replace(config, audit_share=0.5, arm="random", **changes)


@pytest.fixture(scope="session")
def audited_once(answered_once, tmp_path_factory) -> ProposeConfig:
    """A project with 16 answers that it has learned from, and 10 to audits."""
    config = copied(answered_once, tmp_path_factory.mktemp("audited"))
    config = half(config, num_queries=20)
    propose(open_project(config), config)
    answer_all(config, lambda n: n % 2)
    learn(open_project(config))
    return config


@pytest.fixture
def audited(audited_once, tmp_path) -> ProposeConfig:
    return copied(audited_once, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("num_queries", [1, 4, 20])
def test_audits_are_their_share_of_all_rounds(share, num_queries):
    config = ProposeConfig(audit_share=share, num_queries=num_queries)
    counts = [num_audits(config, number) for number in range(40)]
    assert sum(counts) == int(40 * share * num_queries + 1e-9)
    assert max(counts) - min(counts) <= 1 and max(counts) <= num_queries


def test_audits_are_drawn_uniformly_and_stand_anywhere():
    config = ProposeConfig(audit_share=0.25, num_queries=8)
    drawn = np.array([draw_audits(config, number, 10) for number in range(2000)])
    assert drawn.shape == (2000, 2)
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 4000, 0.1, atol=0.025)
    batches = np.array([with_audits(config, n, range(6), [8, 9]) for n in range(2000)])
    places = np.nonzero(batches >= 8)[1]
    np.testing.assert_allclose(np.bincount(places) / 4000, 0.125, atol=0.03)
    assert all(batch[batch < 8].tolist() == list(range(6)) for batch in batches)


def test_a_batch_with_audits_is_the_same_in_every_call(config):
    config = half(config)
    first = propose(open_project(config), config)
    again = propose(open_project(config), config)
    assert [query.query_id for query in first] == [query.query_id for query in again]
    assert len({query.item_ids for query in first}) == 4
    assert [query.arm for query in first].count("audit") == 2
    # Made anew after a kill before the file was written.
    (file,) = (Path(config.project) / "queries").glob("*.jsonl")
    content = file.read_bytes()
    file.unlink()
    propose(open_project(config), config)
    assert file.read_bytes() == content
    # Without audits it is another batch.
    other = propose(open_project(config), dataclasses.replace(config, audit_share=0.0))
    assert not any(map(is_audit, other)) and other[0].round == 1


def test_audits_are_never_learned_from(config):
    config = half(config)
    propose(open_project(config), config)
    queries = known_queries(Path(config.project))
    learned = [query for query in queries.values() if not is_audit(query)]
    with open_writer(answer_file(Path(config.project))) as writer:
        for query in learned:
            event = asking.answer(query, 0, annotator="ann", order=range(2), seconds=1.0)
            writer.append(event._replace(event_id=f"{query.query_id}-ann"))
    before = learn(open_project(config))
    answer_all(config)  # the audits alone are left
    assert len(current_answers(answer_file(Path(config.project)))) == 4
    after = learn(open_project(config))
    assert after.state.num_updates == before.state.num_updates == 1
    assert after.state.history[-1]["answers"] == 2
    params = [project.state.members.states.params for project in (before, after)]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_answers_to_audits_alone_teach_nothing(config, capsys):
    config = half(config, num_queries=2)
    (audit,) = [q for q in propose(open_project(config), config) if is_audit(q)]
    with open_writer(answer_file(Path(config.project))) as writer:
        writer.append(asking.answer(audit, 0, annotator="ann", order=range(2), seconds=1.0))
    run.experiment(LearnConfig(project=config.project))
    assert open_project(config).state.num_updates == 0
    assert "no forecast: 1 audits have an answer" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["answers", "export"])
def test_audits_stay_audits_in_another_project(audited, tmp_path, way):
    another = dataclasses.replace(audited, project=str(tmp_path / "another"), num_queries=1)
    propose(open_project(another), another)
    file = answer_file(Path(audited.project))
    if way == "export":
        file = tmp_path / "export.jsonl"
        run.experiment(ExportConfig(project=audited.project, answers=str(file)))
    for _ in range(2):  # the second time adds nothing
        run.experiment(ImportConfig(project=another.project, file=str(file)))
    counts = {}
    for folder in (audited.project, another.project):
        queries, answers = standing_answers(Path(folder))
        kept = sorted(
            (queries[a.query_id].prompt, sorted(queries[a.query_id].completions), a.annotator)
            for a in answers
            if is_audit(queries[a.query_id])
        )
        counts[folder] = (len(answers), kept)
    assert counts[another.project] == counts[audited.project]
    assert len(counts[audited.project][1]) == 10
    assert learn(open_project(another)).state.history[-1]["answers"] == 14


def test_losses_of_audits_are_those_of_their_answers(audited):
    project = open_project(audited)
    queries, answers = standing_answers(project.folder)
    audits = [answer for answer in answers if is_audit(queries[answer.query_id])]
    first = audits[0]
    tie = audits[1]._replace(ranks=(1, 1))
    second = first._replace(event_id="b", annotator="bob", ranks=first.ranks[::-1], weight=3.0)
    losses, claims = audit_losses(project, queries, [first, tie, second])
    query = queries[first.query_id]
    items = [project.item_numbers[item_key((query.prompt, text))] for text in query.completions]
    log_probs = log_softmax(np.float64(utilities(project, np.array(items))), axis=1)
    mixture = np.log(np.exp(log_probs).mean(axis=0))
    best = int(np.argmin(first.ranks))
    np.testing.assert_allclose(losses, [-0.25 * mixture[best] - 0.75 * mixture[1 - best]])
    alone = evaluation.claims(log_probs)
    np.testing.assert_allclose(claims.expected, [alone.expected])
    np.testing.assert_allclose(claims.variance, [alone.variance * (0.25**2 + 0.75**2)])


def test_a_forecast_is_printed_and_recorded(audited, capsys):
    run.experiment(LearnConfig(project=audited.project, until=0.3, until_share_kl=1e-6))
    said = capsys.readouterr().out
    assert "by 10 audits, after 14 labels; next batch: 10" in said
    assert "labels to a log-loss of 0.3" in said and "not within 140" in said
    found = json.loads((Path(audited.project) / "forecast.json").read_text())
    assert found["audits"] == 10 and found["labels"] == 14
    for name in ("real_share", "loss", "next_loss", "gain", "left"):
        ends = [found["estimates"][name][end] for end in ("low95", "low80", "median")]
        ends += [found["estimates"][name][end] for end in ("high80", "high95")]
        assert ends == sorted(ends)
    assert found["estimates"]["labels to a log-loss of 0.3"]["median"] is None


def test_a_forecast_is_the_same_in_every_call(audited):
    assert record_forecast(open_project(audited)) == record_forecast(open_project(audited))


def test_a_project_of_an_older_version_has_a_forecast(audited):
    """Whose rows lack the claims: those of the start and of now are made again."""
    project = open_project(audited)
    rows = [
        {name: value for name, value in row.items() if not name.startswith("pool/")}
        for row in project.state.history
    ]
    older = project._replace(state=project.state._replace(history=rows))
    both = [make_forecast(some, *standing_answers(project.folder)) for some in (project, older)]
    assert both[0] == both[1]
    tables.metrics(project.folder, rows)


def test_too_few_audits_say_how_many_are_needed(answered):
    project = learn(open_project(answered))
    with pytest.raises(NoForecast, match=r"0 audits have an answer .*, expected 10 or more"):
        make_forecast(project, *standing_answers(project.folder))
    assert "expected 10 or more" in advice(project, 0.1)


def test_propose_says_when_a_batch_brings_less_than_asked(audited, capsys):
    run.experiment(dataclasses.replace(audited, num_queries=1, least_gain=5.0))
    said = " ".join(capsys.readouterr().out.split())
    assert "which is less than --least_gain=5, because all further labels together" in said
    assert len(known_queries(Path(audited.project))) == 25  # it is proposed all the same
    assert "you may stop" not in advice(open_project(audited), 1e-9)


def test_a_slow_curve_is_no_reason_to_say_that_little_is_left(audited):
    project = open_project(audited)
    found = make_forecast(project, *standing_answers(project.folder)).estimates
    between = (found["gain"]["high80"] + found["left"]["high80"]) / 2
    said = advice(project, between)
    assert "because the curve is slow: many more labels would still bring [" in said
    assert "you may stop" not in said and said.endswith("the batch is proposed all the same")


def test_quantiles_next_to_infinity():
    found = estimate(np.array([1.0, 2.0, 3.0, np.inf, np.inf]))
    assert found["median"] == 3.0 and found["low80"] == 1.0 and np.isinf(found["high80"])


@pytest.mark.parametrize("arm", ["v_optimal", "joint_infomax"])
def test_an_arm_of_batches_asks_a_whole_batch(config, arm):
    config = dataclasses.replace(config, arm=arm, num_queries=6, audit_share=0.0)
    batch = propose(open_project(config), config)
    assert len({query.item_ids for query in batch}) == 6
    assert {query.arm for query in batch} == {arm}


def test_a_number_of_candidates_that_was_lowered_is_said(config, capsys):
    config = dataclasses.replace(config, num_responses=4, num_queries=4)
    run.experiment(dataclasses.replace(config, num_candidates=500))
    assert "lowered" not in capsys.readouterr().out
    run.experiment(dataclasses.replace(config, num_candidates=501))
    said = " ".join(capsys.readouterr().out.split())
    assert "--num_candidates=501 was lowered to 500: --arm=v_optimal takes at most 2000" in said


@pytest.mark.parametrize("utility", ["sum", "tilt"])
def test_v_optimal_is_about_the_law_where_utilities_are_log_probs(config, utility):
    config = dataclasses.replace(
        config, arm="v_optimal", ensemble="adapters", utility=utility, num_queries=6
    )
    batch = propose(open_project(config), config)
    assert len({query.item_ids for query in batch}) == 6
    assert {query.arm for query in batch} == {"v_optimal"}
