"""The whole cycle unattended, at a tiny size: seeds side by side, stops and kills."""

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
from safetensors.numpy import save as save_numpy

from experiments.label_loop import loop
from shatter import data, documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking, run
from shatter.cli.label.answers import current_answers
from shatter.cli.label.checkpoints import save
from shatter.cli.label.config import Import, Propose
from shatter.cli.label.learn import standing_answers
from shatter.cli.label.project import Bench, open_project, utilities
from shatter.cli.label.propose import propose
from shatter.cli.label.queries import read_queries
from shatter.cli.label.writer import open_writer
from tests.cli.label.projects import VOTES, as_loop, write

ROOT = Path(__file__).resolve().parents[3]


def test_a_loop_with_recorded_votes_is_the_same_after_a_stop(config: Propose, tmp_path: Path):
    whole = as_loop(config, tmp_path, project=str(tmp_path / "whole"), num_rounds=3)
    found = loop.run(whole, lambda message, done: None)[0]
    assert found.ensemble.history[-1]["answers"] == 6
    halves = dataclasses.replace(whole, project=str(tmp_path / "halves"))
    loop.run(dataclasses.replace(halves, num_rounds=1), lambda message, done: None)
    # Killed after the proposal and one answer of the second round.
    bench = open_project(halves)
    batch = propose(bench, halves, recorded=True)
    with open_writer(bench.folder / "answers.jsonl") as writer:
        writer.append(loop._event(bench, halves, batch[0], None))
    again = loop.run(halves, lambda message, done: None)[0]
    params = [bench.ensemble.members.states.params for bench in (found, again)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    answers = [current_answers(b.folder / "answers.jsonl") for b in (found, again)]
    ids = [[(a.event_id, a.ranks) for a in some] for some in answers]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 6


def test_recorded_answers_are_the_recorded_ones(config: Propose, tmp_path: Path):
    once = as_loop(config, tmp_path, num_queries=8, num_rounds=1, arm="random")
    bench = loop.run(once, lambda message, done: None)[0]
    with pytest.raises(
        UsageError, match=r"has 0 comparisons that were not asked \(8 were\), expected 8"
    ):
        loop.run(dataclasses.replace(once, num_rounds=2), lambda message, done: None)
    votes = bench.pool.rows[(0, 1)]
    assert votes == {(1, 2): 3.0, (2, 1): 1.0}
    rng = np.random.default_rng(0)
    drawn = np.mean([loop._recorded(votes, rng) == (1, 2) for _ in range(4000)])
    np.testing.assert_allclose(drawn, 0.75, atol=4 * np.sqrt(0.75 * 0.25 / 4000))


@pytest.mark.parametrize(
    "kind", ["heads", *(pytest.param(k, marks=pytest.mark.slow) for k in ("epinet", "adapters"))]
)
def test_seeds_side_by_side_are_seeds_in_turn(config: Propose, tmp_path: Path, kind: str):
    def after(seeds_at_once: int) -> list[Bench]:
        one = as_loop(
            config,
            tmp_path,
            project=str(tmp_path / f"at_once{seeds_at_once}"),
            ensemble=kind,
            num_seeds=3,
            seeds_at_once=seeds_at_once,
        )
        return loop.run(one, lambda message, done: None)

    together, in_turn = after(2), after(1)
    assert [bench.ensemble.number for bench in together] == [2, 2, 2]
    # The same files and one table serve all seeds; the members are each seed's own.
    assert len({id(bench.start.shared[1]) for bench in together}) == 1
    assert len({id(bench.inputs) for bench in together}) == 1
    found = [
        [utilities(bench, np.arange(16)) for bench in benches] for benches in (together, in_turn)
    ]
    np.testing.assert_allclose(*found, atol=1e-4)  # Adam makes much of small gradients' rounding
    assert np.abs(found[0][0] - found[0][1]).max() > 0.01
    answers = [
        [
            (a.event_id, a.ranks)
            for b in benches
            for a in current_answers(b.folder / "answers.jsonl")
        ]
        for benches in (together, in_turn)
    ]
    assert answers[0] == answers[1]


def test_seeds_side_by_side_are_the_same_after_a_stop(
    config: Propose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = as_loop(config, tmp_path, project=str(tmp_path / "whole"), num_seeds=2)
    expected = loop.run(whole, lambda message, done: None)
    halves = dataclasses.replace(whole, project=str(tmp_path / "halves"))
    saved = []

    def save_three(folder: Path, *rest) -> None:  # two of the first round, one of the second
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(folder.name)
        save(folder, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shatter.cli.label.learn.save", save_three)
        loop.run(halves, lambda message, done: None)
    assert saved == ["seed0", "seed1", "seed0"]
    rows = json.loads((tmp_path / "halves" / "seed0" / "summary.json").read_text())
    assert rows["after"]["answers"] == 4  # what a killed loop has measured is on disk
    found = loop.run(halves, lambda message, done: None)
    for one, other in zip(expected, found, strict=True):
        assert one.ensemble.number == other.ensemble.number == 2
        states = [bench.ensemble.members.states for bench in (one, other)]
        states = [state._replace(key=jax.random.key_data(state.key)) for state in states]
        jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_seed_that_has_had_its_rounds_learns_nothing_more(config: Propose, tmp_path: Path):
    two = as_loop(config, tmp_path, num_seeds=2, num_rounds=1)
    folder = loop.run(two, lambda message, done: None)[0].folder
    query, *_ = read_queries(folder / "queries").values()
    with open_writer(folder / "answers.jsonl") as writer:
        writer.append(asking.answer(query, 0, annotator="ann", order=range(2), seconds=1.0))
    benches = loop.run(dataclasses.replace(two, num_seeds=3), lambda message, done: None)
    assert [bench.ensemble.number for bench in benches] == [1, 1, 1]
    benches = loop.run(dataclasses.replace(two, num_rounds=2), lambda message, done: None)
    assert [bench.ensemble.number for bench in benches] == [2, 2]
    assert [bench.ensemble.history[-1]["answers"] for bench in benches] == [5, 4]


def test_seeds_side_by_side_take_comparisons_of_any_number(config: Propose, tmp_path: Path):
    rows = [*VOTES[:4], {"prompt": "", "completions": ["ac", "bc", "cc"], "ranks": [1, 2, 3]}]
    four = as_loop(config, tmp_path, num_seeds=4, num_rounds=1, arm="random")
    four = dataclasses.replace(four, pool=write(tmp_path / "mixed.jsonl", rows))
    benches = loop.run(four, lambda message, done: None)
    sizes = [
        max(len(query.completions) for query in read_queries(bench.folder / "queries").values())
        for bench in benches
    ]
    assert {2, 3} == set(sizes)
    assert [bench.ensemble.number for bench in benches] == [1] * 4


def test_a_rater_that_cannot_rate(config: Propose, tmp_path: Path, model_folder: Path):
    rater = tmp_path / "rater"
    loop_of = lambda **changes: as_loop(config, tmp_path, rater="model", **changes)
    with pytest.raises(UsageError, match=r"--rater_model=.*absent"):
        run.experiment(loop_of(rater_model=str(tmp_path / "absent")))
    shutil.copytree(model_folder, rater)
    heads = (b"?", save_numpy({"other": np.zeros((1, 8), "f4")}))
    heads += tuple(save_numpy({"score.weight": np.full(s, v, "f4")}) for s, v in
                   (((1, 9), 0.0), ((8,), 0.0), ((1, 8), np.nan)))  # fmt: skip
    for head in heads:
        (rater / "reward_head.safetensors").write_bytes(head)
        with pytest.raises(UsageError, match=r"--rater_model: .*reward_head.safetensors"):
            run.experiment(loop_of(rater_model=str(rater)))
    (rater / "reward_head.safetensors").unlink()
    file = rater / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 16}))
    with pytest.raises(UsageError, match="--max_length=24: expected at most the 16 tokens of --ra"):
        run.experiment(loop_of(rater_model=str(rater)))


def test_seeds_whose_candidates_differ_learn_in_turn(
    config: Propose, tmp_path: Path, model_folder: Path
):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("ab", "ch", "bad")])
    two = as_loop(
        config,
        tmp_path,
        pool=prompts,
        rater="model",
        rater_model=str(model_folder),
        max_completion_length=4,
        num_seeds=2,
        num_rounds=1,
    )
    benches = loop.run(two, lambda message, done: None)
    assert benches[0].pool.items != benches[1].pool.items
    assert [len(bench.ensemble.history) for bench in benches] == [2, 2]


def test_a_rater_model_and_two_seeds(config: Propose, tmp_path: Path, model_folder: Path):
    two = as_loop(
        config,
        tmp_path,
        rater="model",
        rater_model=str(model_folder),
        rater_scale=1000.0,
        num_seeds=2,
        pool=config.pool,
        num_rounds=1,
    )
    run.experiment(two)
    for seed in (0, 1):
        folder = Path(two.project) / f"seed{seed}"
        queries, answers = standing_answers(folder)
        assert len(answers) == 2
        loaded, params, tokenizer = models.load_pretrained(model_folder, dtype="float32")
        for answer in answers:  # the scale is large: the likelier text is chosen
            query = queries[answer.query_id]
            means = []
            for text in query.completions:
                encoded, _ = data.encode_rows(
                    [data.Row(query.prompt, (text,), (0,))], tokenizer, max_length=24
                )
                batch = data.collate(encoded, [0], length=24, num_slots=1)
                logits = models.transformer(loaded).apply(
                    params, batch.tokens[0], valid=batch.valid[0]
                )
                log_prob = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
                means.append(float(log_prob[0]) / batch.mask.sum())
            assert np.argmax(means) == np.argmin(answer.ranks)


def test_a_loop_goes_on_after_an_import(config: Propose, tmp_path: Path):
    once = as_loop(config, tmp_path, num_rounds=1)
    loop.run(once, lambda message, done: None)
    others = write(tmp_path / "others.jsonl", [{"prompt": "h", "chosen": "g", "rejected": "f f"}])
    run.experiment(Import(file=others, project=once.project))
    bench = loop.run(dataclasses.replace(once, num_rounds=2), lambda message, done: None)[0]
    assert bench.ensemble.history[-1]["answers"] == 5


def test_a_pool_that_says_nothing_has_no_recorded_answers(config: Propose, tmp_path: Path):
    silent = as_loop(config, tmp_path, pool=config.pool)
    with pytest.raises(UsageError, match="has no answers"):
        loop.run(silent, lambda message, done: None)


@pytest.mark.slow
def test_a_loop_killed_at_any_moment_ends_the_same(config: Propose, tmp_path: Path):
    whole = as_loop(config, tmp_path, project=str(tmp_path / "whole"), num_rounds=4)
    expected = loop.run(whole, lambda message, done: None)[0]
    flags = [
        f"--{name}={value}"
        for name, value in dataclasses.asdict(whole).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    killed = tmp_path / "killed"
    flags = [flag for flag in flags if not flag.startswith(("--project", "--data_dir"))]
    flags += [f"--project={killed}", "--eval_files", *whole.eval_files]
    flags += ["--lora_target_modules", *whole.lora_target_modules]
    command = [sys.executable, "-m", "shatter.cli", "label", "loop", *flags]
    for seconds in (6, 7, 8, 9, 10, 12):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = open_project(dataclasses.replace(whole, project=str(killed)))
    params = [bench.ensemble.members.states.params for bench in (expected, found)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    ids = [answer.event_id for answer in current_answers(killed / "answers.jsonl")]
    assert len(ids) == len(set(ids)) == 8
