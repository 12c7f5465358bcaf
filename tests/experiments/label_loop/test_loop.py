"""Rounds without people at a tiny size: raters, seeds in turn, stops and kills."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save as save_numpy

from experiments.label_loop import loop
from experiments.label_loop.config import Config, check
from experiments.label_loop.raters import draw_vote, recorded_rater
from experiments.label_loop.run import experiment
from shatter import data, documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking, run
from shatter.cli.label.answers import current_answers
from shatter.cli.label.checkpoints import save
from shatter.cli.label.config import ImportConfig
from shatter.cli.label.learn import standing_answers
from shatter.cli.label.project import Project, open_project, utilities
from shatter.cli.label.propose import propose
from shatter.cli.label.queries import read_queries
from shatter.cli.label.writer import open_writer
from tests.cli.label.projects import VOTES, write

pytestmark = pytest.mark.slow  # whole runs of an experiment

ROOT = Path(__file__).resolve().parents[3]


def run_loop(config: Config) -> list[Project]:
    return loop.run(config, lambda message, done: None)


def test_a_loop_with_recorded_votes_is_the_same_after_a_stop(loop_config, tmp_path: Path):
    whole = loop_config(project=str(tmp_path / "whole"), num_rounds=3)
    found = run_loop(whole)[0]
    assert found.state.history[-1]["answers"] == 6
    halves = dataclasses.replace(whole, project=str(tmp_path / "halves"))
    run_loop(dataclasses.replace(halves, num_rounds=1))
    # Killed after the proposal and one answer of the second round.
    project = open_project(halves)
    batch = propose(project, halves, recorded=True)
    with open_writer(project.folder / "answers.jsonl") as writer:
        writer.append(loop.answer_of(recorded_rater(project.pool, halves.pool), halves, batch[0]))
    again = run_loop(halves)[0]
    params = [project.state.members.states.params for project in (found, again)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    answers = [current_answers(b.folder / "answers.jsonl") for b in (found, again)]
    ids = [[(a.event_id, a.ranks) for a in some] for some in answers]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 6


def test_recorded_answers_are_the_recorded_ones(loop_config, tmp_path: Path):
    once = loop_config(num_queries=8, num_rounds=1, arm="random")
    project = run_loop(once)[0]
    with pytest.raises(
        UsageError, match=r"has 0 comparisons that were not asked \(8 were\), expected 8"
    ):
        run_loop(dataclasses.replace(once, num_rounds=2))
    votes = project.pool.rows[(0, 1)]
    assert votes == {(1, 2): 3.0, (2, 1): 1.0}
    rng = np.random.default_rng(0)
    drawn = np.mean([draw_vote(votes, rng) == (1, 2) for _ in range(4000)])
    np.testing.assert_allclose(drawn, 0.75, atol=4 * np.sqrt(0.75 * 0.25 / 4000))


@pytest.mark.parametrize(
    "kind", ["heads", *(pytest.param(k, marks=pytest.mark.slow) for k in ("epinet", "adapters"))]
)
def test_seeds_in_turn_are_those_of_a_call_each(loop_config, tmp_path: Path, kind: str):
    whole = loop_config(project=str(tmp_path / "in_turn"), ensemble=kind, num_seeds=3)
    in_turn = run_loop(whole)
    each = [
        run_loop(
            dataclasses.replace(whole, project=str(tmp_path / f"{seed}"), seed=seed, num_seeds=1)
        )[0]
        for seed in range(3)
    ]
    assert [project.state.num_updates for project in in_turn] == [2, 2, 2]
    # The same files and one table serve all seeds; the members are each seed's own.
    assert len({id(project.start.shared[1]) for project in in_turn}) == 1
    assert len({id(project.inputs) for project in in_turn}) == 1
    values = [
        [utilities(project, np.arange(16)) for project in projects] for projects in (in_turn, each)
    ]
    np.testing.assert_array_equal(*values)
    assert np.abs(values[0][0] - values[0][1]).max() > 0.01
    answers = [
        [
            (answer.event_id, answer.ranks)
            for project in projects
            for answer in current_answers(project.folder / "answers.jsonl")
        ]
        for projects in (in_turn, each)
    ]
    assert answers[0] == answers[1]


def test_seeds_in_turn_are_the_same_after_a_stop(
    loop_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = loop_config(project=str(tmp_path / "whole"), num_seeds=2)
    expected = run_loop(whole)
    halves = dataclasses.replace(whole, project=str(tmp_path / "halves"))
    saved = []

    def save_three(folder: Path, *rest) -> None:  # both rounds of one seed, one of the next
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(folder.name)
        save(folder, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shatter.cli.label.learn.save", save_three)
        run_loop(halves)
    assert saved == ["seed0", "seed0", "seed1"]
    rows = json.loads((tmp_path / "halves" / "seed1" / "summary.json").read_text())
    assert rows["after"]["answers"] == 2  # a killed loop has written its measures
    resumed = run_loop(halves)
    for one, other in zip(expected, resumed, strict=True):
        assert one.state.num_updates == other.state.num_updates == 2
        states = [project.state.members.states for project in (one, other)]
        states = [state._replace(key=jax.random.key_data(state.key)) for state in states]
        jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_seed_that_has_had_its_rounds_learns_nothing_more(loop_config, tmp_path: Path):
    two = loop_config(num_seeds=2, num_rounds=1)
    folder = run_loop(two)[0].folder
    query, *_ = read_queries(folder / "queries").values()
    with open_writer(folder / "answers.jsonl") as writer:
        writer.append(asking.answer(query, 0, annotator="ann", order=range(2), seconds=1.0))
    projects = run_loop(dataclasses.replace(two, num_seeds=3))
    assert [project.state.num_updates for project in projects] == [1, 1, 1]
    projects = run_loop(dataclasses.replace(two, num_rounds=2))
    assert [project.state.num_updates for project in projects] == [2, 2]
    assert [project.state.history[-1]["answers"] for project in projects] == [5, 4]


def test_seeds_take_comparisons_of_any_number(loop_config, tmp_path: Path):
    rows = [*VOTES[:4], {"prompt": "", "completions": ["ac", "bc", "cc"], "ranks": [1, 2, 3]}]
    four = loop_config(num_seeds=4, num_rounds=1, arm="random")
    four = dataclasses.replace(four, pool=write(tmp_path / "mixed.jsonl", rows))
    projects = run_loop(four)
    sizes = [
        max(len(query.completions) for query in read_queries(project.folder / "queries").values())
        for project in projects
    ]
    assert {2, 3} == set(sizes)
    assert [project.state.num_updates for project in projects] == [1] * 4


def test_a_pool_that_a_loop_would_exhaust_is_refused_at_the_start(loop_config):
    three = loop_config(num_queries=3, num_rounds=3)  # of 8 comparisons
    with pytest.raises(UsageError, match=r"--num_rounds=3 with --num_queries=3: .* expected 9"):
        experiment(three)
    assert not (Path(three.project) / "queries").exists()
    experiment(dataclasses.replace(three, num_rounds=2))  # lower one of the two
    with pytest.raises(UsageError, match=r"has 2 comparisons .* expected 3 for the 1 rounds"):
        experiment(three)
    experiment(dataclasses.replace(three, num_queries=2))


def test_a_rater_that_cannot_rate(loop_config, tmp_path: Path, model_folder: Path):
    rater = tmp_path / "rater"
    loop_of = lambda **changes: loop_config(rater="model", **changes)
    with pytest.raises(UsageError, match=r"--rater_model=.*absent"):
        experiment(loop_of(rater_model=str(tmp_path / "absent")))
    shutil.copytree(model_folder, rater)
    heads = (b"?", save_numpy({"other": np.zeros((1, 8), "f4")}))
    heads += tuple(save_numpy({"score.weight": np.full(s, v, "f4")}) for s, v in
                   (((1, 9), 0.0), ((8,), 0.0), ((1, 8), np.nan)))  # fmt: skip
    for head in heads:
        (rater / "reward_head.safetensors").write_bytes(head)
        with pytest.raises(UsageError, match=r"--rater_model: .*reward_head.safetensors"):
            experiment(loop_of(rater_model=str(rater)))
    (rater / "reward_head.safetensors").unlink()
    file = rater / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 16}))
    with pytest.raises(UsageError, match="--max_length=24: expected at most the 16 tokens of --ra"):
        experiment(loop_of(rater_model=str(rater)))


def test_a_rater_that_answers_nan_stops_the_loop_and_answers_stay(
    loop_config, config, tmp_path: Path, model_folder: Path
):
    rater = tmp_path / "rater"
    shutil.copytree(model_folder, rater)
    one = loop_config(rater="model", rater_model=str(rater), pool=config.pool, num_rounds=1)
    run_loop(one)
    file = Path(one.project) / "answers.jsonl"
    before = file.read_bytes()
    assert before.count(b"\n") == 2
    weights = load_numpy(rater / "model.safetensors")
    broken = {name: np.full_like(values, 1e15) for name, values in weights.items()}  # overflow
    (rater / "model.safetensors").write_bytes(save_numpy(broken))
    two = dataclasses.replace(one, num_rounds=2)
    with pytest.raises(
        UsageError,
        match=r"--rater_model=.*finite utilities .* of r0001.*found \[nan, nan\].*another",
    ):
        run_loop(two)
    assert file.read_bytes() == before
    (rater / "model.safetensors").write_bytes(save_numpy(weights))
    run_loop(two)  # the round that was proposed is answered by a rater that can
    assert file.read_bytes().startswith(before) and file.read_bytes().count(b"\n") == 4


def test_seeds_whose_candidates_differ_learn_in_turn(
    loop_config, tmp_path: Path, model_folder: Path
):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("ab", "ch", "bad")])
    two = loop_config(
        pool=prompts,
        rater="model",
        rater_model=str(model_folder),
        max_completion_length=4,
        num_seeds=2,
        num_rounds=1,
    )
    projects = run_loop(two)
    assert projects[0].pool.items != projects[1].pool.items
    assert [len(project.state.history) for project in projects] == [2, 2]


def test_a_rater_model_and_two_seeds(loop_config, config, tmp_path: Path, model_folder: Path):
    two = loop_config(
        rater="model",
        rater_model=str(model_folder),
        rater_scale=1000.0,
        num_seeds=2,
        pool=config.pool,
        num_rounds=1,
    )
    experiment(two)
    assert (Path(two.project) / "label_loop.png").stat().st_size > 1000
    for seed in (0, 1):
        folder = Path(two.project) / f"seed{seed}"
        queries, answers = standing_answers(folder)
        assert len(answers) == 2
        loaded, params, tokenizer = models.load_pretrained(model_folder, dtype="float32")
        apply = jax.jit(models.transformer(loaded).apply)
        for answer in answers:  # the scale is large: the likelier text is chosen
            query = queries[answer.query_id]
            means = []
            for text in query.completions:
                encoded, _ = data.encode_rows(
                    [data.Row(query.prompt, (text,), (0,))], tokenizer, max_length=24
                )
                batch = data.collate(encoded, [0], length=24, num_slots=1)
                logits = apply(params, batch.tokens[0], valid=batch.valid[0])
                log_prob = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
                means.append(float(log_prob[0]) / batch.mask.sum())
            assert np.argmax(means) == np.argmin(answer.ranks)


def test_a_loop_goes_on_after_an_import(loop_config, tmp_path: Path):
    once = loop_config(num_rounds=1)
    run_loop(once)
    others = write(tmp_path / "others.jsonl", [{"prompt": "h", "chosen": "g", "rejected": "f f"}])
    run.experiment(ImportConfig(file=others, project=once.project))
    project = run_loop(dataclasses.replace(once, num_rounds=2))[0]
    assert project.state.history[-1]["answers"] == 5


def test_a_pool_that_says_nothing_has_no_recorded_answers(loop_config, config):
    silent = loop_config(pool=config.pool)
    with pytest.raises(UsageError, match="has no answers"):
        run_loop(silent)


@pytest.mark.slow
def test_a_loop_killed_at_any_moment_ends_the_same(loop_config, tmp_path: Path):
    whole = loop_config(project=str(tmp_path / "whole"), num_rounds=4)
    expected = run_loop(whole)[0]
    flags = [
        f"--{name}={value}"
        for name, value in dataclasses.asdict(whole).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    killed = tmp_path / "killed"
    flags = [flag for flag in flags if not flag.startswith(("--project", "--data_dir"))]
    flags += [f"--project={killed}", "--eval_files", *whole.eval_files]
    flags += ["--lora_target_modules", *whole.lora_target_modules]
    command = [sys.executable, "-m", "experiments.label_loop.run", *flags]
    for seconds in (6, 7, 8, 9, 10, 12):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = open_project(dataclasses.replace(whole, project=str(killed)))
    params = [project.state.members.states.params for project in (expected, found)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    ids = [answer.event_id for answer in current_answers(killed / "answers.jsonl")]
    assert len(ids) == len(set(ids)) == 8


def test_flags_of_the_loop(loop_config):
    for changes, message in (
        ({"rater": "model"}, "expected --rater_model"),
        ({"num_rounds": 0}, "--num_rounds must be at least 1"),
        ({"seed": 2**31 - 1, "num_seeds": 2}, "the last seed must be at most"),
        ({"pool": ""}, "--pool is required"),
    ):
        with pytest.raises(UsageError, match=message):
            check(loop_config(**changes))


def test_models_of_the_data_folder_are_known_by_name(
    loop_config, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = []
    monkeypatch.setattr(
        loop,
        "run",
        lambda config, _: folders.append((config.model_name_or_path, config.rater_model)) or [],
    )
    names = {"model_name_or_path": "stories260k", "rater_model": "stories260k"}
    named = loop_config(data_dir=str(data_dir), rater="model", **names)
    experiment(named)
    assert folders == [(str(data_dir / "stories260k"),) * 2]
    absent = dataclasses.replace(named, data_dir=str(tmp_path / "absent"))
    for flag in names:
        other = dict.fromkeys(names, str(tmp_path)) | {flag: "stories260k"}
        with pytest.raises(UsageError, match=f"--{flag}=stories260k: the data folder"):
            experiment(dataclasses.replace(absent, **other))
