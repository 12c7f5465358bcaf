"""Tiny projects: propose, learn, export, and errors about flags and files."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from shatter import data, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from shatter.cli.common.locks import alone
from shatter.cli.label import asking, run
from shatter.cli.label.candidates import sample_candidates
from shatter.cli.label.config import (
    AcceptConfig,
    ExportConfig,
    ImportConfig,
    LearnConfig,
    ProposeConfig,
    check,
)
from shatter.cli.label.learn import learn, standing_answers
from shatter.cli.label.pool import draw_queries
from shatter.cli.label.project import Project, open_project, utilities
from shatter.cli.label.propose import propose
from shatter.cli.label.records import remember_paths
from shatter.cli.label.writer import open_writer
from tests.cli.label.projects import POOL, VOTES, answer_all, assert_a_cycle_works, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heads", pytest.param("epinet", marks=pytest.mark.slow)])
def test_a_cycle_of_each_kind(config: ProposeConfig, kind: str):
    assert_a_cycle_works(dataclasses.replace(config, ensemble=kind))


@pytest.mark.slow
def test_learning_again_from_the_same_answers_changes_nothing(config: ProposeConfig):
    project = open_project(config)
    propose(project, config)
    with pytest.raises(UsageError, match="has no answer that stands"):
        learn(project)
    answer_all(config)
    once = learn(open_project(config))
    twice = learn(open_project(config))
    assert (once.state.num_updates, twice.state.num_updates) == (1, 1)
    params = [project.state.members.states.params for project in (once, twice)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert once.state.history == twice.state.history


@pytest.mark.slow
def test_members_that_went_astray_are_not_saved(answered: ProposeConfig, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shatter.cli.label.learn.utilities", lambda _, items: np.full(2, np.inf))
        patch.setattr(
            "shatter.cli.label.learn.measure", lambda *_: {"answers": 0, "answers_sha256": ""}
        )
        with pytest.raises(UsageError, match=r"not finite; nothing of .*project was saved"):
            learn(open_project(answered))
    assert open_project(answered).state.num_updates == 0


@pytest.mark.slow
def test_a_batch_stays_until_somebody_has_answered(config: ProposeConfig):
    first = propose(open_project(config), config)
    again = propose(open_project(config), config)
    assert [q.query_id for q in again] == [q.query_id for q in first]
    assert len(list((Path(config.project) / "queries").glob("*.jsonl"))) == 1


@pytest.mark.slow
def test_learning_is_warm_and_follows_the_answers(config: ProposeConfig):
    config = dataclasses.replace(config, num_queries=15, arm="random")
    project = open_project(config)
    queries = propose(project, config)
    answer_all(config, lambda n: 1)
    before = utilities(project, np.array([query.item_ids for query in queries]))
    after_one = learn(open_project(config))
    after = utilities(after_one, np.array([query.item_ids for query in queries]))
    margin = lambda u: np.mean(u[..., 1] - u[..., 0])
    assert margin(after) > margin(before) + 0.1
    # The second call begins where the first has ended.
    assert np.all(np.asarray(after_one.state.members.states.step) == 30)
    propose(after_one, config)
    answer_all(config, lambda n: 1)
    assert np.all(np.asarray(learn(open_project(config)).state.members.states.step) == 60)


def test_exported_answers_read_as_preferences(config: ProposeConfig, tmp_path: Path):
    run.experiment(config)
    answer_all(config, lambda n: "tie" if n == 0 else 1)
    path = tmp_path / "answers.jsonl"
    run.experiment(ExportConfig(project=config.project, answers=str(path)))
    rows, _ = data.read_rows(path)
    queries, answers = standing_answers(Path(config.project))
    assert [row.annotator for row in rows] == ["ann"] * 4
    assert rows[0].ranks == (1, 1)
    for row, answer in zip(rows[1:], answers[1:], strict=True):
        best = row.completions[int(np.argmin(row.ranks))]
        assert best == queries[answer.query_id].completions[1]
    with pytest.raises(UsageError, match="exists: choose another name"):
        run.experiment(ExportConfig(project=config.project, answers=str(path)))
    with pytest.raises(UsageError, match="not language models"):
        run.experiment(ExportConfig(project=config.project, model=str(tmp_path / "model")))


@pytest.mark.slow
def test_imported_answers_teach_too(config: ProposeConfig, tmp_path: Path):
    run.experiment(config)
    others = write(tmp_path / "others.jsonl", [{"prompt": "h", "chosen": "g", "rejected": "f f"}])
    run.experiment(ImportConfig(file=others, project=config.project))
    before = open_project(config)
    after = learn(before)
    assert after.state.history[-1]["answers"] == 1
    numbers = [after.item_numbers[json.dumps(['"h"', json.dumps(text)])] for text in ("g", "f f")]

    def margins(project):
        chosen, rejected = np.moveaxis(utilities(project, np.array(numbers)), -1, 0)
        return chosen - rejected

    assert np.all(margins(after) > margins(before))


@pytest.mark.slow
def test_prompts_alone_have_candidates_sampled_once(config: ProposeConfig, tmp_path: Path):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "ab "}, {"prompt": "c"}])
    config = dataclasses.replace(config, pool=prompts, num_samples=3, max_completion_length=6)
    project = open_project(config)
    assert [len(items) for items in project.pool.by_prompt] == [3, 3]
    kept = Path(config.project) / "candidates.jsonl"
    texts = kept.read_text()
    assert open_project(config).pool == project.pool
    assert kept.read_text() == texts


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["random", "boltzmann", "thompson", "double_thompson", "infomax"])
def test_every_arm_and_three_responses(config: ProposeConfig, arm: str):
    config = dataclasses.replace(config, arm=arm, num_responses=3)
    batch = propose(open_project(config), config)
    assert len({query.item_ids for query in batch}) == 4
    for query in batch:
        assert len(set(query.item_ids)) == len(query.completions) == 3
        assert query.prompt == POOL[query.prompt_id]["prompt"]


def test_queries_are_drawn_from_all_that_can_be_asked(config: ProposeConfig, tmp_path: Path):
    project = open_project(config)
    rng = np.random.default_rng(0)
    draw = lambda num, asked: draw_queries(
        project.pool, rng, num=num, num_responses=2, asked=asked, recorded=False
    )
    every = draw(1000, set())
    assert len(every) == len(set(every)) == 5 * 6
    assert set(draw(1000, set(every[:7]))) == set(every[7:])
    few = draw(3, set())
    assert len(few) == 3
    assert set(few) <= set(every)


@pytest.mark.slow
def test_conversations_go_through_by_a_chat_template(config: ProposeConfig, tmp_path: Path):
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
    run.experiment(LearnConfig(project=chat.project))
    queries, answers = standing_answers(Path(chat.project))
    assert len(answers) == 4
    assert all(isinstance(query.prompt, tuple | list) for query in queries.values())
    alone = write(tmp_path / "alone.jsonl", [{"prompt": row["prompt"]} for row in rows])
    sampled = dataclasses.replace(
        chat, pool=alone, project=str(tmp_path / "sampled"), max_completion_length=6, num_samples=3
    )
    for prompt, text in open_project(sampled).pool.items:
        assert [m["role"] for m in (*prompt, *text)] == ["user", "assistant"]


@pytest.mark.slow
def test_sampled_candidates_are_read_back_and_end_where_that_counts(
    config: ProposeConfig, tmp_path: Path
):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "ab"}, {"prompt": "c "}])
    short = dataclasses.replace(config, pool=prompts, max_completion_length=6, num_samples=3)
    project = open_project(short)
    for prompt, text in project.pool.items:
        row = data.Row(prompt, (text,), (0,))
        data.encode_rows([row], project.inputs.model.tokenizer, max_length=24)
    summed = dataclasses.replace(
        short, ensemble="adapters", utility="sum", project=str(tmp_path / "s")
    )
    with pytest.raises(UsageError, match="0 different responses that end within 1 tokens"):
        open_project(dataclasses.replace(summed, max_completion_length=1))
    assert not Path(summed.project).exists()
    # Some of the same draws are cut after 7 tokens; only those that ended before are kept.
    longer = dataclasses.replace(summed, max_completion_length=7, num_samples=6)
    summed, tilted, any_end = (
        lengths_of_candidates(dataclasses.replace(longer, utility=utility), project)
        for utility in ("sum", "tilt", "ratio")
    )
    assert summed == tilted <= set(range(1, 7)) and max(any_end) == 7


def lengths_of_candidates(config: ProposeConfig, project: Project) -> set[int]:
    prompts = project.inputs.pool_file.prompts
    lines = sample_candidates(config, project.inputs.model, prompts).splitlines()
    return {len(text) for line in lines for text in json.loads(line)["completions"]}


@pytest.mark.slow
def test_candidates_follow_the_prompt_as_it_is_encoded(config: ProposeConfig):
    """The model sees the BOS and the end of a prompt that is too long, as its encoding does."""
    long = "abcdefgh" * 5
    model = load_frozen(config.model_name_or_path)
    some = dataclasses.replace(config, num_samples=3, max_completion_length=6)
    texts = [
        json.loads(sample_candidates(some, model, [prompt]))["completions"]
        for prompt in (long, long[-16:])  # 24 - (6 and the end) - BOS
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 3


@pytest.mark.slow
def test_held_out_files_may_come_later_and_stay(config: ProposeConfig, tmp_path: Path):
    people = [
        {"prompt": "", "chosen": "a", "rejected": "bb", "annotator": f"p{n}", "group": "g"}
        for n in range(5)
    ]
    files = (*config.eval_files, write(tmp_path / "people.jsonl", people))
    config = dataclasses.replace(config, eval_files=())
    run.experiment(config)
    answer_all(config)
    run.experiment(LearnConfig(project=config.project))
    run.experiment(dataclasses.replace(config, eval_files=files))
    answer_all(config)
    run.experiment(config)
    run.experiment(LearnConfig(project=config.project))
    summary = json.loads((Path(config.project) / "summary.json").read_text())
    after = summary["after"]
    assert {"held/log_loss", "held/soft_cross_entropy", "held/soft_manhattan"} <= after.keys()
    assert "held/log_loss" not in summary["before"]
    loss = after["people/log_loss"]
    for name in ("group=g/log_loss", "person_log_loss"):
        assert after[f"people/{name}"] == pytest.approx(loss, rel=1e-5)
    assert after["people/person_error_rate"] == (loss > np.log(2))


def test_other_flags_or_other_members_make_another_batch(config: ProposeConfig):
    project = open_project(config)
    first = propose(project, config)
    more = propose(project, dataclasses.replace(config, num_queries=5, arm="random"))
    assert [query.round for query in more] == [1] * 5
    assert not {q.item_ids for q in first} & {q.item_ids for q in more}


@pytest.mark.slow
def test_answers_taken_back_are_unlearned(answered: ProposeConfig):
    project = learn(open_project(answered))
    with open_writer(project.folder / "answers.jsonl") as writer:
        for event in reversed(list(writer.events)):
            writer.append(asking.undo(event))
    after = learn(open_project(answered))
    params = [after.state.members.states.params, after.start.states.params]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert [row["answers"] for row in after.state.history] == [0, 4, 0]


def test_paths_are_known_from_another_folder(
    config: ProposeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    run.experiment(LearnConfig(project="../project"))
    assert json.loads(Path("../project/summary.json").read_text())["after"]["answers"] == 4


def test_one_process_at_a_time_and_leftovers_of_a_killed_one(config: ProposeConfig):
    folder = Path(config.project)
    with (
        alone(config.project, "--project"),
        pytest.raises(UsageError, match=f"process {os.getpid()} works"),
    ):
        run.experiment(config)
    (folder / ".config.json.4194305-00badf00.tmp").write_text("{")  # killed while it was written
    run.experiment(config)
    (folder / "paths.json").unlink()
    with pytest.raises(UsageError, match=r"paths.json is missing: propose with the flags that say"):
        run.experiment(LearnConfig(project=config.project))
    run.experiment(config)
    answer_all(config)
    run.experiment(LearnConfig(project=config.project))


BAD_POOLS = {
    "one candidate": ([*POOL, {"prompt": "x", "completions": ["y"]}], r"pool.jsonl:6.*found one"),
    "no text": ([{"prompt": "x", "completions": ["y", 3]}], r"pool.jsonl:1: completions\[1\]"),
    "mixed": ([POOL[0], {"prompt": "x"}], "one or the other in all rows"),
    "no prompt": ([{"completions": ["y", "z"]}], r"pool.jsonl:1: prompt: .*fields completions;"),
    "empty": ([], "found no row"),
}


@pytest.mark.parametrize("name", BAD_POOLS)
def test_bad_pools(config: ProposeConfig, name: str):
    rows, message = BAD_POOLS[name]
    write(Path(config.pool), rows)
    with pytest.raises(UsageError, match=message):
        open_project(config)
    assert not Path(
        config.project
    ).exists()  # so that a corrected file is not refused as another pool


@pytest.mark.parametrize(
    "given",
    ["--pool=pool.jsonl", pytest.param("--model_name_or_path=folder", marks=pytest.mark.slow)],
)
def test_flags_that_are_required_come_with_a_whole_command(given: str):
    """The command in the message has every flag that is required."""
    command = [sys.executable, "-m", "shatter.cli", "label", "propose", given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    absent = {"--pool": "model_name_or_path", "--model_name_or_path": "pool"}[given.split("=")[0]]
    assert done.returncode == 1 and f"--{absent} is required; for example: " in done.stderr
    example = shlex.split(done.stderr.split("example: shatter label ")[1])
    parsed = tyro.cli(run.FLAGS, args=example, use_underscores=True)
    check(parsed)


def test_bad_flags(config: ProposeConfig, tmp_path: Path):
    for changes, message in (
        ({"pool": ""}, "--pool"),
        ({"num_members": 1}, "--num_members must be at least 2"),
        ({"num_candidates": 2}, "--num_candidates must be at least --num_queries"),
        ({"prior_scale": float("nan")}, "--prior_scale must be"),
        ({"adapted_layers": 0}, "--adapted_layers must be last_mlp_out or at least 1, found 0"),
        *(
            (
                {"ensemble": "adapters", "utility": utility, "utility_scale": 3.0},
                f"--utility_scale=3.0 belongs to --utility=ratio, found --utility={utility}: .* or "
                "change --utility$",
            )
            for utility in ("tilt", "sum")
        ),
    ):
        with pytest.raises(UsageError, match=message):
            check(dataclasses.replace(config, **changes))
    with pytest.raises(UsageError, match="no file"):
        open_project(dataclasses.replace(config, pool=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UsageError, match="is no labelling project"):
        run.experiment(LearnConfig(project=str(tmp_path / "absent")))
    for changes, message in (
        ({"adapted_layers": 2}, "--adapted_layers must be below the 2 blocks"),
        ({"lora_target_modules": ("qkw",)}, "--lora_target_modules: .*qkw"),
        (
            {"adapted_layers": "last_mlp_out"},
            "--adapted_layers=last_mlp_out: expected --lora_target_modules mlp_out, found query va",
        ),
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
    config: ProposeConfig, make_model, tmp_path: Path
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
        run.experiment(LearnConfig(project=config.project))
    pool.write_text(kept)
    loaded, params, _ = models.load_pretrained(folder, dtype="float32")
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)
    models.save_pretrained(folder, loaded, params)
    with pytest.raises(UsageError, match=r"the model .* has changed since"):
        run.experiment(LearnConfig(project=config.project))


def test_an_answer_to_an_unknown_query(answered: ProposeConfig):
    answers = Path(answered.project) / "answers.jsonl"
    answers.write_text(answers.read_text().replace("r0000-q002", "r0009-q002"))
    run.experiment(AcceptConfig(project=answered.project))
    with pytest.raises(UsageError, match=r"answers.jsonl:3.*r0009-q002"):
        run.experiment(LearnConfig(project=answered.project))


def test_a_recorded_held_out_file_that_must_be_renamed_comes_with_the_way_to(answered, tmp_path):
    """Older versions took a held-out file named pool and recorded its path."""
    (tmp_path / "old files").mkdir()
    named = write(tmp_path / "old files" / "pool.jsonl", VOTES[:4])
    files = (*answered.eval_files, named)
    remember_paths(dataclasses.replace(answered, eval_files=files), Path(answered.project), {})
    with pytest.raises(UsageError, match=r"rename the file.* as before and --eval_files") as error:
        run.experiment(LearnConfig(project=answered.project))
    renamed = shlex.split(str(error.value).split("--eval_files ")[-1])
    assert renamed[:-1] == list(answered.eval_files)
    Path(named).rename(renamed[-1])
    run.experiment(dataclasses.replace(answered, eval_files=tuple(renamed)))
    run.experiment(LearnConfig(project=answered.project))
    row = json.loads((Path(answered.project) / "summary.json").read_text())["after"]
    assert {"held/log_loss", "held_out_pool/log_loss"} <= row.keys()


def test_a_held_out_file_has_not_the_name_of_the_pools_own_measures(config, tmp_path):
    named = write(tmp_path / "pool.jsonl", [{"prompt": "", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UsageError, match=r"named pool are those of the pool's .* rename the file"):
        open_project(dataclasses.replace(config, eval_files=(named,)))
