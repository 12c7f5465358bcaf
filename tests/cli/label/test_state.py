"""A project checks its own files: damage is named, and the save before it is used."""

import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.cli.label import run
from shatter.cli.label.answers import current_answers
from shatter.cli.label.config import ExportConfig, ImportConfig, LearnConfig, check
from shatter.cli.label.folder import answer_file
from shatter.cli.label.learn import learn
from shatter.cli.label.project import open_project
from shatter.cli.label.propose import propose
from shatter.cli.label.queries import read_queries
from shatter.cli.label.records import read_project, with_known_paths
from tests.cli.label.projects import VOTES, answer_all, write

pytestmark = pytest.mark.slow  # its fixture learns a project

KINDS = {"binary": b"\xff\x00\xfe", "null": b"null", "list": b"[]", "empty": b"", "cut": None}
FILES = ("config.json", "paths.json", "queries/round_0001.jsonl", "answers.jsonl.confirmed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_a_way_on(learned, name, kind):
    file = Path(learned.project) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if kind == "cut" else KINDS[kind])
    before = answer_file(Path(learned.project)).read_bytes()
    with pytest.raises(UsageError, match=file.name) as error:
        run.experiment(LearnConfig(project=learned.project))
    ways = ("Put the file back", "put it back", "delete it, and propose", "accept --project")
    assert any(way in str(error.value) for way in ways)
    assert answer_file(Path(learned.project)).read_bytes() == before
    file.write_bytes(whole)
    run.experiment(LearnConfig(project=learned.project))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_members", "3"),
        ("num_members", True),
        ("num_members", 1),
        ("prior_scale", None),
        ("prior_scale", float("nan")),
        ("prior_scale", 1e300),
        ("ensemble", "forest"),
        ("ensemble", ["heads"]),
        ("lora_target_modules", ["query", 3]),
        ("seed", 2**63),
        ("seed", -1),
        ("max_length", None),
    ],
)
def test_every_flag_of_a_config_is_checked(learned, name, value):
    file = Path(learned.project) / "config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {name: value}))
    with pytest.raises(UsageError, match=rf"config.json is damaged \(.*{name}.*put it back"):
        read_project(learned.project)
    file.write_text(json.dumps({k: v for k, v in record.items() if k != name}))
    with pytest.raises(UsageError, match=rf"config.json is damaged \(it lacks {name}\)"):
        read_project(learned.project)


@pytest.mark.parametrize(
    ("name", "value"), [("eval_files", "a"), ("eval_files", [1]), ("pool", None), ("data_dir", 4)]
)
def test_every_path_is_checked(learned, name, value):
    file = Path(learned.project) / "paths.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(UsageError, match=rf"paths.json is damaged \({name}: found"):
        with_known_paths(learned)


def with_paths(config, **changes):
    """Changes the record of paths, as an older version would have written it."""
    file = Path(config.project) / "paths.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    file.with_name("paths.json.sha256").unlink()


def test_a_model_that_older_versions_looked_up_in_a_data_folder(learned):
    folder = Path(learned.model_name_or_path)
    with_paths(learned, model_name_or_path=folder.name, data_dir=str(folder.parent))
    run.experiment(LearnConfig(project=learned.project))
    with_paths(learned, model_name_or_path=folder.name, data_dir=None)
    mend = "has moved, give its new folder to `shatter label propose` as --model_name_or_path"
    with pytest.raises(UsageError, match=rf"--model_name_or_path=tiny: there is no.*{mend}"):
        run.experiment(LearnConfig(project=learned.project))
    run.experiment(learned)  # the advice
    run.experiment(LearnConfig(project=learned.project))


def checkpoint_files(config, number):
    folder = Path(config.project) / "ensemble" / str(number)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_one_flipped_bit_is_named_and_the_ensemble_before_serves(learned, caplog):
    before = open_project(learned)
    assert before.state.num_updates == 2
    data = [file for file in checkpoint_files(learned, 2) if file.name != "SHA256SUMS"]
    large = max(data, key=lambda file: file.stat().st_size)
    content = bytearray(large.read_bytes())
    content[len(content) // 2] ^= 1
    large.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="absl"):
        after = open_project(learned)
    assert f"{large.name} is damaged" in caplog.text and "checkpoint before" in caplog.text
    assert after.state.num_updates == 1
    again = learn(after)  # from all answers, which are still there
    assert again.state.num_updates == 2
    params = [one.state.members.states.params for one in (before, again)]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_a_flipped_digit_of_a_flag_is_named_before_anything_is_learned(learned):
    file = Path(learned.project) / "config.json"
    whole = file.read_text()
    file.write_text(whole.replace('"num_steps": 30', '"num_steps": 31'))
    config = LearnConfig(project=learned.project)
    with pytest.raises(UsageError, match=r"config.json is damaged: .*; or put it back from"):
        run.experiment(config)
    file.write_text(whole)
    run.experiment(config)
    file.write_text(whole.replace('"num_steps": 30', '"num_steps":  30'))
    with pytest.raises(UsageError, match="if you have changed it yourself, delete") as error:
        run.experiment(config)
    Path(re.search(r"delete (\S+);", str(error.value))[1]).unlink()
    run.experiment(config)


def test_a_flipped_letter_of_a_path_is_named_and_the_advice_helps(learned):
    file = Path(learned.project) / "paths.json"
    file.write_text(file.read_text().replace("pool.jsonl", "poom.jsonl"))
    with pytest.raises(UsageError, match=r"paths.json is damaged: .*: delete it, and propose with"):
        run.experiment(LearnConfig(project=learned.project))
    file.unlink()
    run.experiment(learned)
    run.experiment(LearnConfig(project=learned.project))


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_written_beside_an_ensemble_is_checked_before_it_is_read(learned, number):
    file = Path(learned.project) / "ensemble" / str(number) / "_CHECKPOINT_METADATA"
    file.write_text("[]")
    assert open_project(learned).state.num_updates == 3 - number
    assert not file.exists()


def test_a_flipped_bit_of_a_table_is_named_and_the_advice_helps(learned):
    file = Path(learned.project) / "tables" / "pool.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"pool.npz is damaged .*: delete it, and the run makes"):
        open_project(learned)
    file.unlink()
    assert open_project(learned).state.num_updates == 2


def test_a_query_file_cut_at_the_end_of_a_line_is_noticed(learned):
    file = Path(learned.project) / "queries" / "round_0001.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    for config in (learned, LearnConfig(project=learned.project)):
        with pytest.raises(UsageError, match=r"round_0001.jsonl is damaged: its sha256 was"):
            run.experiment(config)
    seal = file.with_name("round_0001.jsonl.sha256")
    sums = seal.read_bytes()
    seal.unlink()  # as in an older version
    for config in (learned, LearnConfig(project=learned.project)):
        with pytest.raises(UsageError, match=r"round_0001.jsonl: expected the 4 queries of its ro"):
            run.experiment(config)
    seal.write_bytes(sums)
    file.write_bytes(b"".join(lines))
    run.experiment(LearnConfig(project=learned.project))


def test_without_a_sound_ensemble_the_advice_helps(learned):
    for number in (1, 2):
        checkpoint_files(learned, number)[0].write_bytes(b"?")
    ensemble = Path(learned.project) / "ensemble"
    with pytest.raises(UsageError, match=rf"damaged.*delete {ensemble} to begin again"):
        open_project(learned)
    shutil.rmtree(ensemble)
    project = learn(open_project(learned))
    assert project.state.history[-1]["answers"] == 8


def test_other_software_learns_no_further(learned, monkeypatch):
    project = open_project(learned)
    answer_all(learned)
    propose(project, learned)
    answer_all(learned)
    monkeypatch.setattr(jax, "__version__", "99.0")
    project = open_project(learned)  # opening, asking and exporting still work
    with pytest.raises(
        UsageError, match=r"jax: found '\d.*', now '99.0'.* delete (.*) to begin"
    ) as e:
        learn(project)
    shutil.rmtree(str(e.value).rpartition("delete ")[2].partition(" to begin")[0])
    # One of the twelve answers is to an audit.
    assert learn(open_project(learned)).state.history[-1]["answers"] == 11


def test_a_project_of_an_older_version_opens_and_says_what_it_cannot_check(learned, capsys, caplog):
    folder = Path(learned.project)
    config = json.loads((folder / "config.json").read_text())
    del config["tokenizer_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    paths = json.loads((folder / "paths.json").read_text())
    old = ("pool", "eval_files", "model_name_or_path", "chat_template")
    kept = {name: paths[name] for name in old} | {"data_dir": None}
    (folder / "paths.json").write_text(json.dumps(kept))
    (folder / "paths.json.sha256").unlink()
    (folder / "answers.jsonl.confirmed").unlink()
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        del line["texts"]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("SHA256SUMS", "software.json"):
        for file in (folder / "ensemble").rglob(name):
            file.unlink()
    for file in (folder / "config.json.sha256", *(folder / "queries").glob("*.sha256")):
        file.unlink()
    with caplog.at_level(logging.WARNING, logger="absl"):
        run.experiment(LearnConfig(project=learned.project))
    assert "did not note what was confirmed" in capsys.readouterr().out
    for name in ("config.json", "ensemble/2", "queries/round_0000.jsonl"):
        assert f"{name} has no checksums" in caplog.text
    caplog.clear()
    assert open_project(learned).state.num_updates == 2 and "checksums" not in caplog.text
    run.experiment(learned)
    answer_all(learned)
    assert learn(open_project(learned)).state.num_updates == 3


# Flags.


def test_flags_that_change_nothing_may_change(learned):
    heads = {"lora_r": 7, "utility_scale": 3.0, "utility": "sum", "adapted_layers": 7}
    assert open_project(dataclasses.replace(learned, **heads)).state.num_updates == 2
    with pytest.raises(UsageError, match="num_steps: found 30, wanted 31"):
        open_project(dataclasses.replace(learned, num_steps=31))


@pytest.mark.slow
def test_a_scale_that_an_older_version_took_unread_may_be_left_out(config):
    config = dataclasses.replace(config, ensemble="adapters", utility="tilt")
    open_project(dataclasses.replace(config, utility_scale=3.0))
    check(config)
    assert open_project(config).config.utility_scale == 3.0


def test_lengths_of_samples_may_change_once_there_are_candidates(learned, tmp_path):
    rows = [
        {"prompt": text, "id": n, "source": {"of": "me"}} for n, text in enumerate(("ab ", "c"))
    ]
    config = dataclasses.replace(
        learned,
        project=str(tmp_path / "sampled"),
        pool=write(tmp_path / "prompts.jsonl", rows),
        num_samples=3,
        max_completion_length=6,
    )
    with pytest.raises(UsageError, match="--max_completion_length=24: expected less than --max_le"):
        open_project(dataclasses.replace(config, max_completion_length=24))
    first = open_project(config)
    later = open_project(dataclasses.replace(config, num_samples=2, max_completion_length=5))
    assert later.pool == first.pool and later.config.num_samples == 3
    file = Path(config.project) / "candidates.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"ab ', b'"ac '))
    with pytest.raises(
        UsageError, match=r"candidates.jsonl is damaged: its sha256 was .*: put it back .*import"
    ):
        open_project(config)


@pytest.fixture
def dated(learned, tmp_path):
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d')[1] | replace('1', 'a') | replace('2', 'b') }}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completions": [
                [{"role": "assistant", "content": text}] for text in ("a", "bb", "cab")
            ],
        }
        for prompt in ("ab", "ch")
    ]
    return dataclasses.replace(
        learned,
        project=str(tmp_path / "dated"),
        pool=write(tmp_path / "chat.jsonl", rows),
        chat_template=str(template),
        num_queries=2,
    )


def test_a_date_in_a_template_is_that_of_the_start(dated):
    first = dataclasses.replace(dated, template_date="2026-01-31T23:59:00")
    propose(open_project(first), first)
    answer_all(first)
    table = (Path(dated.project) / "tables" / "pool.npz").read_bytes()
    project = open_project(dated)  # without the flag, on another day
    assert project.config.template_date == first.template_date
    assert project.inputs.model.tokenizer.date.day == 31
    assert (Path(dated.project) / "tables" / "pool.npz").read_bytes() == table
    other = dataclasses.replace(dated, template_date="2026-02-02")
    with pytest.raises(
        UsageError, match=r"2026-01-31T23:59:00 since .*found 2026-02-02: leave the"
    ):
        open_project(other)
    run.experiment(dated)  # the advice
    assert open_project(read_project(dated.project)).config.template_date == first.template_date


def test_a_date_is_known_without_the_record_of_paths(dated):
    first = dataclasses.replace(dated, template_date="2026-01-31T23:59:00")
    propose(open_project(first), first)
    paths = Path(dated.project) / "paths.json"
    before = paths.read_text()
    paths.unlink()
    open_project(dated)
    assert paths.read_text() == before
    # An older version had no date in its config; the date among the paths counts then.
    file = Path(dated.project) / "config.json"
    record = json.loads(file.read_text())
    del record["template_date"]
    file.write_text(json.dumps(record))
    file.with_name("config.json.sha256").unlink()
    assert open_project(dated).config.template_date == first.template_date


def test_a_date_that_no_template_reads_may_change(learned):
    open_project(dataclasses.replace(learned, template_date="2001-01-01"))
    with pytest.raises(UsageError, match="--template_date must be a date such as"):
        run.experiment(dataclasses.replace(learned, template_date="soon"))


def test_a_held_out_file_that_has_changed_needs_another_name(learned, tmp_path):
    (held,), config = learned.eval_files, learned
    open_project(config)
    write(Path(held), VOTES[:3])
    with pytest.raises(UsageError, match=r"--eval_files: held has changed since .*another name"):
        open_project(config)
    new = Path(held).rename(tmp_path / "held_anew.jsonl")
    project = open_project(dataclasses.replace(config, eval_files=(str(new),)))
    assert list(project.inputs.held_out) == ["held_anew"]


def test_another_tokenizer_is_noticed(learned, tmp_path):
    folder = tmp_path / "own model"
    shutil.copytree(learned.model_name_or_path, folder)
    config = dataclasses.replace(
        learned, project=str(tmp_path / "other"), model_name_or_path=str(folder)
    )
    propose(open_project(config), config)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"Split"', '"Split" '))
    assert models.load_pretrained(folder)[2] is not None
    with pytest.raises(UsageError, match=r"the tokenizer of .*own model has changed since"):
        open_project(config)


# Kills.


class Killed(BaseException):
    pass


def _copy(config, folder):
    shutil.copytree(config.project, folder)
    return open_project(dataclasses.replace(config, project=str(folder)))


@pytest.mark.parametrize("command", ["propose", "import", "export", "learn"])
def test_killed_at_every_write(learned, tmp_path, monkeypatch, command):
    """After a kill at any rename or sync the same command goes on, and nothing is doubled."""
    rows = [{"prompt": f"h{n}", "chosen": "g", "rejected": "f f", "annotator": "Z"} for n in (1, 2)]
    config = {
        "propose": learned,
        "import": ImportConfig(project=learned.project, file=write(tmp_path / "rows.jsonl", rows)),
        "export": ExportConfig(project=learned.project, answers=str(tmp_path / "export.jsonl")),
        "learn": LearnConfig(project=learned.project),
    }[command]
    if command == "learn":
        propose(open_project(learned), learned)
        answer_all(learned)
        whole = learn(_copy(learned, tmp_path / "whole"))
    calls = {"left": 0}

    def counted(real):
        def call(*args, **options):
            if calls["left"] == 0:
                raise Killed
            calls["left"] -= 1
            return real(*args, **options)

        return call

    number, done = 0, False
    while not done:
        calls["left"], done = number, True
        with monkeypatch.context() as patch:
            for name in ("replace", "fsync"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                run.experiment(config)
            except Killed:
                done = False
        number += 1
    assert number > 2
    folder = Path(learned.project)
    expected = {"propose": (8, 8), "import": (10, 10), "export": (8, 8), "learn": (12, 12)}[command]
    if command == "learn":
        found_params = open_project(learned).state.members.states.params
        jax.tree.map(np.testing.assert_array_equal, found_params, whole.state.members.states.params)
    queries = read_queries(folder / "queries")
    assert len(queries) == expected[0] + (4 if command == "propose" else 0)
    found = current_answers(answer_file(folder))
    assert len(found) == len({(one.query_id, one.annotator) for one in found}) == expected[1]
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.part"))


def test_what_killed_processes_left_is_removed(learned):
    folder = Path(learned.project)
    left = [
        folder / "queries" / ".round_0001.jsonl.4194305.part",
        folder / ".candidates.jsonl.4194305.part",
        folder / "queries" / ".round_0001.jsonl.sha256.4194305-00badf00.tmp",
        folder / "ensemble" / "2" / ".SHA256SUMS.4194305-00badf00.tmp",
        folder / "tables" / ".pool.npz.4194305-00badf00.tmp",
        folder / ".config.json.4194305-00badf00.tmp",
    ]
    for file in left:
        file.write_text("half")
    staging = folder / "ensemble" / "3.orbax-checkpoint-tmp"
    staging.mkdir()
    (staging / "half").write_text("half")
    assert open_project(learned).state.num_updates == 2
    assert not any(file.exists() for file in (*left, staging))
