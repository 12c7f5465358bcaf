"""Projects at a tiny size: propose, learn, loop, export; what they refuse; what a kill leaves."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common.binary import UsageError
from experiments.label import asking, loop, run
from experiments.label.answers import current_answers, read_queries
from experiments.label.config import Export, Import, Learn, Loop, Propose, check
from experiments.label.folder import alone
from experiments.label.learn import learn, standing_answers
from experiments.label.pool import draw_queries
from experiments.label.project import Bench, open_project, save, utilities
from experiments.label.propose import propose
from experiments.label.writer import open_writer
from shatter import data, documents, models

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"num_members": 3, "num_steps": 4, "batch_size": 4, "max_length": 24, "lora_r": 2}


@pytest.fixture(scope="module")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 2)
    return folder


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


POOL = [
    {"prompt": f"{'abcde'[n]} ", "completions": ["a", "bb", "ab c", "d" * (n + 1)]}
    for n in range(5)
]
VOTES = [{"prompt": "", "completions": [f"a{x}", f"b{x}"], "votes": [3, 1]} for x in "abcdefgh"]


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Propose:
    return Propose(
        project=str(tmp_path / "project"),
        pool=write(tmp_path / "pool.jsonl", POOL),
        eval_files=(write(tmp_path / "held.jsonl", VOTES[:4]),),
        model_name_or_path=str(model_folder),
        num_queries=4,
        num_candidates=40,
        **SIZES,
    )


def as_loop(config: Propose, tmp_path: Path, **changes) -> Loop:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(Propose)}
    fields |= {"pool": write(tmp_path / "votes.jsonl", VOTES), "num_queries": 2, "num_rounds": 2}
    return Loop(**{**fields, **changes})


def answer_all(config: Propose, choose: Callable[[int], int | str] = lambda n: 0) -> int:
    folder = Path(config.project)
    with open_writer(folder / "answers.jsonl") as writer:
        queries = read_queries(folder / "queries")
        answered = {event.query_id for event in writer.events}
        left = [query for name, query in queries.items() if name not in answered]
        for n, query in enumerate(left):
            order = range(len(query.completions))
            event = asking.answer(query, choose(n), annotator="ann", order=order, seconds=1.0)
            writer.append(event._replace(event_id=f"{query.query_id}-ann"))
    return len(left)


@pytest.mark.parametrize(
    "kind", ["heads", pytest.param("epinet", marks=pytest.mark.slow), "adapters"]
)
def test_a_cycle_of_each_kind(config: Propose, kind: str):
    config = dataclasses.replace(config, ensemble=kind)
    run.experiment(config)
    assert answer_all(config) == 4
    run.experiment(Learn(project=config.project))
    folder = Path(config.project)
    row = json.loads((folder / "summary.json").read_text())["after"]
    assert row["answers"] == 4
    assert {"held/log_loss", "held/joint_log_loss", "held/disagreement"} <= row.keys()
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 20
    np.testing.assert_allclose(sum(s["share"] for s in scores if s["prompt_id"] == 0), 1, atol=1e-5)
    assert (folder / "label.png").stat().st_size > 1000
    # The next round asks what was not asked, by the members as they are now.
    run.experiment(config)
    queries = list(read_queries(folder / "queries").values())
    assert [query.round for query in queries] == [0] * 4 + [1] * 4
    assert len({tuple(sorted(query.item_ids)) for query in queries}) == 8
    assert queries[0].model != queries[4].model
    assert all(query.arm == "joint_infomax" and query.budget == 4 for query in queries)


def test_learning_again_from_the_same_answers_changes_nothing(config: Propose):
    bench = open_project(config)
    propose(bench, config)
    with pytest.raises(UsageError, match="has no answer that stands"):
        learn(bench)
    answer_all(config)
    once = learn(open_project(config))
    twice = learn(open_project(config))
    assert (once.ensemble.number, twice.ensemble.number) == (1, 1)
    params = [bench.ensemble.members.states.params for bench in (once, twice)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert once.ensemble.history == twice.ensemble.history


def test_members_that_went_astray_are_not_saved(config: Propose):
    config = dataclasses.replace(config, learning_rate=1e38)
    propose(open_project(config), config)
    answer_all(config)
    with pytest.raises(UsageError, match=r"not finite; nothing of .*project was saved"):
        learn(open_project(config))
    assert open_project(config).ensemble.number == 0


def test_a_batch_stays_until_somebody_has_answered(config: Propose):
    first = propose(open_project(config), config)
    again = propose(open_project(config), config)
    assert [q.query_id for q in again] == [q.query_id for q in first]
    assert len(list((Path(config.project) / "queries").iterdir())) == 1


def test_learning_is_warm_and_follows_the_answers(config: Propose):
    config = dataclasses.replace(config, num_queries=15, learning_rate=0.1, num_steps=30)
    bench = open_project(config)
    queries = propose(bench, config)
    answer_all(config, lambda n: 1)
    before = utilities(bench, np.array([query.item_ids for query in queries]))
    after_one = learn(open_project(config))
    after = utilities(after_one, np.array([query.item_ids for query in queries]))
    margin = lambda u: np.mean(u[..., 1] - u[..., 0])
    assert margin(after) > margin(before) + 0.1
    # Warm: the second call begins where the first has ended.
    assert np.all(np.asarray(after_one.ensemble.members.states.step) == 30)
    propose(after_one, config)
    answer_all(config, lambda n: 1)
    assert np.all(np.asarray(learn(open_project(config)).ensemble.members.states.step) == 60)


def test_utilities_of_adapters_are_those_of_the_merged_models(config: Propose):
    alone = {"adapted_layers": 0, "lora_target_modules": ("mlp_out",)}
    for utility, changes in (("sum", {}), ("ratio", {}), ("sum", alone)):
        config = dataclasses.replace(
            config,
            ensemble="adapters",
            utility=utility,
            project=config.project + utility,
            **changes,
        )
        bench = open_project(config)
        folder = Path(config.project)
        found = utilities(bench, np.arange(3))
        run.experiment(config)
        answer_all(config)
        for member in (1, -1):
            path = folder / f"model{member}"
            run.experiment(Export(project=config.project, model=str(path), member=member))
            assert (path / "model.safetensors").exists()
        if utility == "ratio":
            continue
        loaded, params, tokenizer = models.load_pretrained(folder / "model1", dtype="float32")
        apply = jax.jit(models.transformer(loaded).apply)
        for n, (prompt, text) in enumerate(bench.items[:3]):
            row = data.Row(prompt, (text,), (0,))
            encoded, _ = data.encode_rows([row], tokenizer, max_length=24)
            batch = data.collate(encoded, [0], length=24, num_slots=1)
            logits = apply(params, batch.tokens[0], valid=batch.valid[0])
            expected = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
            np.testing.assert_allclose(found[1, n], expected[0], atol=1e-4)


def test_exported_answers_read_as_preferences(config: Propose, tmp_path: Path):
    run.experiment(config)
    answer_all(config, lambda n: "tie" if n == 0 else 1)
    path = tmp_path / "answers.jsonl"
    run.experiment(Export(project=config.project, answers=str(path)))
    rows, _ = data.read_rows(path)
    queries, answers = standing_answers(Path(config.project))
    assert [row.annotator for row in rows] == ["ann"] * 4
    assert rows[0].ranks == (1, 1)
    for row, answer in zip(rows[1:], answers[1:], strict=True):
        best = row.completions[int(np.argmin(row.ranks))]
        assert best == queries[answer.query_id].completions[1]
    with pytest.raises(UsageError, match="exists: choose another name"):
        run.experiment(Export(project=config.project, answers=str(path)))
    with pytest.raises(UsageError, match="no language models"):
        run.experiment(Export(project=config.project, model=str(tmp_path / "model")))


def test_imported_answers_teach_too(config: Propose, tmp_path: Path):
    run.experiment(config)
    others = write(tmp_path / "others.jsonl", [{"prompt": "h", "chosen": "g", "rejected": "f f"}])
    run.experiment(Import(file=others, project=config.project))
    before = open_project(config)
    after = learn(before)
    assert after.ensemble.history[-1]["answers"] == 1
    numbers = [after.numbers[json.dumps(['"h"', json.dumps(text)])] for text in ("g", "f f")]

    def margins(bench):
        chosen, rejected = np.moveaxis(utilities(bench, np.array(numbers)), -1, 0)
        return chosen - rejected

    assert np.all(margins(after) > margins(before))


def test_prompts_alone_have_candidates_sampled_once(config: Propose, tmp_path: Path):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "ab "}, {"prompt": "c"}])
    config = dataclasses.replace(config, pool=prompts, num_samples=3, max_completion_length=6)
    bench = open_project(config)
    assert [len(items) for items in bench.pool.by_prompt] == [3, 3]
    kept = Path(config.project) / "candidates.jsonl"
    texts = kept.read_text()
    assert open_project(config).pool == bench.pool
    assert kept.read_text() == texts


@pytest.mark.parametrize("arm", ["random", "boltzmann", "thompson", "double_thompson", "infomax"])
def test_every_arm_and_three_responses(config: Propose, arm: str):
    config = dataclasses.replace(config, arm=arm, num_responses=3)
    batch = propose(open_project(config), config)
    assert len({query.item_ids for query in batch}) == 4
    for query in batch:
        assert len(set(query.item_ids)) == len(query.completions) == 3
        assert query.prompt == POOL[query.prompt_id]["prompt"]


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
    with pytest.raises(UsageError, match="has 0 comparisons of 2 that were not asked"):
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

    def save_three(bench: Bench, *rest) -> Bench:  # two of the first round, one of the second
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(bench.folder.name)
        return save(bench, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("experiments.label.learn.save", save_three)
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


def test_queries_are_drawn_from_all_that_can_be_asked(config: Propose, tmp_path: Path):
    bench = open_project(config)
    rng = np.random.default_rng(0)
    draw = lambda num, asked: draw_queries(
        bench.pool, rng, num=num, num_responses=2, asked=asked, recorded=False
    )
    every = draw(1000, set())
    assert len(every) == len(set(every)) == 5 * 6
    assert set(draw(1000, set(every[:7]))) == set(every[7:])
    few = draw(3, set())
    assert len(few) == 3
    assert set(few) <= set(every)


def test_conversations_go_through_by_a_chat_template(config: Propose, tmp_path: Path):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] != 'assistant' %} {% endif %}{% endfor %}"
    )
    say = lambda role, text: [{"role": role, "content": text}]
    rows = [
        {
            "prompt": say("user", prompt),
            "completions": [say("assistant", text) for text in ("a", "bb", "cab")],
        }
        for prompt in ("ab", "ch")
    ]
    chat = dataclasses.replace(
        config, pool=write(tmp_path / "chat.jsonl", rows), chat_template=str(template)
    )
    with pytest.raises(UsageError, match="chat template"):
        open_project(dataclasses.replace(chat, chat_template=None))
    run.experiment(chat)
    answer_all(chat)
    run.experiment(Learn(project=chat.project))
    queries, answers = standing_answers(Path(chat.project))
    assert len(answers) == 4
    assert all(isinstance(query.prompt, tuple | list) for query in queries.values())
    alone = write(tmp_path / "alone.jsonl", [{"prompt": row["prompt"]} for row in rows])
    sampled = dataclasses.replace(
        chat, pool=alone, project=str(tmp_path / "sampled"), max_completion_length=6, num_samples=8
    )
    for prompt, text in open_project(sampled).pool.items:
        assert [m["role"] for m in (*prompt, *text)] == ["user", "assistant"]


def test_sampled_candidates_are_read_back_and_end_where_that_counts(
    config: Propose, tmp_path: Path
):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "ab"}, {"prompt": "c "}])
    short = dataclasses.replace(config, pool=prompts, max_completion_length=3, num_samples=2)
    bench = open_project(short)
    for prompt, text in bench.pool.items:
        row = data.Row(prompt, (text,), (0,))
        data.encode_rows([row], bench.inputs.model.tokenizer, max_length=24)
    summed = dataclasses.replace(
        short, ensemble="adapters", utility="sum", project=str(tmp_path / "s")
    )
    with pytest.raises(UsageError, match="0 different responses that end within 1 tokens"):
        open_project(dataclasses.replace(summed, max_completion_length=1))
    assert not Path(summed.project).exists()
    ended = open_project(dataclasses.replace(summed, max_completion_length=7, num_samples=6))
    # Some of the same draws are cut after 7 tokens; only those that ended before are kept.
    any_end = dataclasses.replace(summed, utility="ratio", project=str(tmp_path / "r"))
    both = open_project(dataclasses.replace(any_end, max_completion_length=7, num_samples=6))
    assert {len(text) for _, text in ended.pool.items} <= set(range(1, 7))
    assert max(len(text) for _, text in both.pool.items) == 7


def test_held_out_files_may_come_later_and_stay(config: Propose):
    files, config = config.eval_files, dataclasses.replace(config, eval_files=())
    run.experiment(config)
    answer_all(config)
    run.experiment(Learn(project=config.project))
    run.experiment(dataclasses.replace(config, eval_files=files))
    answer_all(config)
    run.experiment(config)
    run.experiment(Learn(project=config.project))
    summary = json.loads((Path(config.project) / "summary.json").read_text())
    assert "held/log_loss" in summary["after"]
    assert "held/log_loss" not in summary["before"]


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


def test_other_flags_or_other_members_make_another_batch(config: Propose):
    bench = open_project(config)
    first = propose(bench, config)
    more = propose(bench, dataclasses.replace(config, num_queries=5, arm="random"))
    assert [query.round for query in more] == [1] * 5
    assert not {q.item_ids for q in first} & {q.item_ids for q in more}


def test_answers_taken_back_are_unlearned(config: Propose):
    propose(open_project(config), config)
    answer_all(config)
    bench = learn(open_project(config))
    with open_writer(bench.folder / "answers.jsonl") as writer:
        for event in reversed(list(writer.events)):
            writer.append(asking.undo(event))
    after = learn(open_project(config))
    params = [after.ensemble.members.states.params, after.start.states.params]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert [row["answers"] for row in after.ensemble.history] == [0, 4, 0]


def test_paths_are_known_from_another_folder(
    config: Propose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(
        config,
        pool="pool.jsonl",
        eval_files=("held.jsonl",),
        model_name_or_path=os.path.relpath(config.model_name_or_path),
    )
    run.experiment(relative)
    answer_all(config)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    run.experiment(Learn(project="../project"))
    assert json.loads(Path("../project/summary.json").read_text())["after"]["answers"] == 4


def test_one_process_at_a_time_and_leftovers_of_a_killed_one(config: Propose):
    folder = Path(config.project)
    with alone(config.project), pytest.raises(UsageError, match=f"process {os.getpid()} works"):
        run.experiment(config)
    folder.mkdir()
    (folder / "config.json.tmp").write_text("{")  # killed while it was written
    run.experiment(config)
    (folder / "paths.json").unlink()
    with pytest.raises(UsageError, match="propose first"):
        run.experiment(Learn(project=config.project))
    run.experiment(config)
    answer_all(config)
    run.experiment(Learn(project=config.project))


BAD_POOLS = {
    "one candidate": ([*POOL, {"prompt": "x", "completions": ["y"]}], r"pool.jsonl:6.*found one"),
    "no text": ([{"prompt": "x", "completions": ["y", 3]}], r"pool.jsonl:1: completions\[1\]"),
    "mixed": ([POOL[0], {"prompt": "x"}], "one or the other in all rows"),
    "no prompt": ([{"completions": ["y", "z"]}], "pool.jsonl:1"),
    "empty": ([], "found no row"),
}


@pytest.mark.parametrize("name", BAD_POOLS)
def test_bad_pools(config: Propose, name: str):
    rows, message = BAD_POOLS[name]
    write(Path(config.pool), rows)
    with pytest.raises(UsageError, match=message):
        open_project(config)
    assert not Path(config.project).exists()  # so that the mended file is not another pool


def test_bad_flags(config: Propose, tmp_path: Path):
    for changes, message in (
        ({"pool": ""}, "--pool"),
        ({"num_members": 1}, "--num_members must be at least 2"),
        ({"num_candidates": 2}, "--num_candidates must be at least --num_queries"),
        ({"prior_scale": float("nan")}, "--prior_scale must be positive"),
    ):
        with pytest.raises(UsageError, match=message):
            check(dataclasses.replace(config, **changes))
    with pytest.raises(UsageError, match="expected --rater_model"):
        check(as_loop(config, tmp_path, rater="model"))
    with pytest.raises(UsageError, match="no file"):
        open_project(dataclasses.replace(config, pool=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UsageError, match="is no labelling project"):
        run.experiment(Learn(project=str(tmp_path / "absent")))
    for changes, message in (
        ({"adapted_layers": 2}, "--adapted_layers must be below the 2 blocks"),
        ({"lora_target_modules": ("qkw",)}, "--lora_target_modules: .*qkw"),
        ({"adapted_layers": 0}, "expected --lora_target_modules mlp_out, found query value"),
    ):
        with pytest.raises(UsageError, match=message):
            open_project(dataclasses.replace(config, ensemble="adapters", **changes))
    with pytest.raises(UsageError, match=r"expected at most the 32 tokens"):
        open_project(dataclasses.replace(config, max_length=33))
    ties = write(
        tmp_path / "ties.jsonl", [{"prompt": "", "completions": ["a", "b"], "ranks": [1, 1]}]
    )
    with pytest.raises(UsageError, match="of which one was preferred, found none in 1 rows"):
        open_project(dataclasses.replace(config, eval_files=(ties,)))
    too_many = dataclasses.replace(config, num_queries=31)
    with pytest.raises(UsageError, match="has 30 comparisons of 2 that were not asked"):
        propose(open_project(too_many), too_many)


def test_another_model_or_pool_than_the_queries_came_from(
    config: Propose, make_model, tmp_path: Path
):
    folder = tmp_path / "own model"
    make_model(folder, 2)
    config = dataclasses.replace(config, model_name_or_path=str(folder))
    run.experiment(config)
    answer_all(config)
    pool = Path(config.pool)
    kept = pool.read_text()
    pool.write_text(kept + json.dumps({"prompt": "h", "completions": ["a", "b"]}) + "\n")
    with pytest.raises(UsageError, match=r"pool.jsonl has changed since .* they are safe"):
        run.experiment(Learn(project=config.project))
    pool.write_text(kept)
    loaded, params, _ = models.load_pretrained(folder, dtype="float32")
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)
    models.save_pretrained(folder, loaded, params)
    with pytest.raises(UsageError, match=r"the model .* has changed since"):
        run.experiment(Learn(project=config.project))


def test_an_answer_to_an_unknown_query(config: Propose):
    run.experiment(config)
    answer_all(config)
    answers = Path(config.project) / "answers.jsonl"
    answers.write_text(answers.read_text().replace("r0000-q002", "r0009-q002"))
    with pytest.raises(UsageError, match=r"answers.jsonl:3.*r0009-q002"):
        run.experiment(Learn(project=config.project))


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
    command = [sys.executable, "-m", "experiments.label.run", "loop", *flags]
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
