"""Runs whose prompts say who answers: flags, files, resumption, measures by group and person."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import run, train
from shatter.cli.finetune.checks import check
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.task import load_task
from tests.cli.finetune.runs import assert_same, finetune, history, trained_params, write

TEXTS = "Group of the person who answers: Person Earlier answers north south p0 p1 p2 p3 p4 p5"
WORDS = list(dict.fromkeys([*TEXTS.split(), *"is better red blue green".split()]))


@pytest.fixture(scope="module")
def words_folder(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    make_model(folder, 1, WORDS)
    return folder


def answers(people: range, num_each: int, seed: int) -> list[dict]:
    """Returns answers about colours; the north likes red and the south blue."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in people:
        group = ("north", "south")[person % 2]
        for _ in range(num_each):
            best = ("red", "blue")[person % 2] if rng.random() < 0.9 else "green"
            other = rng.choice([word for word in ("red", "blue", "green") if word != best])
            about = {"annotator": f"p{person}", "group": group}
            rows.append(
                {"prompt": "better is", "chosen": f" {best}", "rejected": f" {other}"} | about
            )
    return rows


@pytest.fixture
def config(words_folder: Path, tmp_path: Path) -> Config:
    return Config(
        model_name_or_path=str(words_folder),
        dataset_name=write(tmp_path / "train.jsonl", answers(range(4), 6, 0)),
        eval_dataset_name=(write(tmp_path / "held.jsonl", answers(range(6), 4, 1)),),
        output_dir=str(tmp_path / "run"),
        condition_on="group",
        min_group_size=2,
        mesh="data=1",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=3e-2,
        max_steps=20,
        max_length=24,
        save_steps=4,
        kl_samples=4,
        kl_batch_size=4,
        kl_length=4,
        num_generations=0,
        max_completion_length=4,
        seed=0,
    )


def conditioned(config: Config, on: str, **changes) -> Config:
    num_examples = {"num_examples": 2} if on == "examples" else {}
    return dataclasses.replace(config, condition_on=on, **num_examples, **changes)


@pytest.mark.slow
def test_a_model_answers_as_a_group_and_as_everybody(config: Config, capsys):
    run.experiment(config)
    output = capsys.readouterr().out
    assert "train: 4 persons, 2 groups; rows: 24 by group, 24 as everybody" in output
    assert "held: 6 persons, 2 groups; rows: 24 by group; not among the training rows: 2 " in output
    before, after = history(config)[0], history(config)[-1]
    for name in (
        "group=north/log_loss",
        "group=south/soft_kl",
        "person_log_loss",
        "soft_manhattan",
    ):
        assert np.isfinite([row[f"eval_held/{name}"] for row in (before, after)]).all()
    # The groups want opposite things, which only a model that knows the group can predict.
    assert after["eval_held/log_loss"] < after["eval_held_as_everybody/log_loss"] - 0.05
    for split in ("held", "held_as_everybody"):
        with (Path(config.output_dir) / f"people_{split}.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["annotator"] for row in table] == [f"p{n}" for n in range(6)]
        mean = np.mean([float(row["log_loss"]) for row in table])
        assert after[f"eval_{split}/person_log_loss"] == pytest.approx(mean, rel=1e-6)
    summary = json.loads((Path(config.output_dir) / "summary.json").read_text())
    assert summary["people"]["held"]["by_group"] == 24
    assert summary["rows"]["held_as_everybody"]["kept"] == 24


@pytest.mark.parametrize("on", ["annotator", "examples"])
def test_persons_who_are_unknown_are_shown_as_their_group(config: Config, on: str):
    task = load_task(conditioned(config, on, max_length=32))
    shown = task.people["held"]
    assert (shown.by_group, shown.unknown_annotators) == (8, 2)
    assert shown.by_annotator + shown.by_examples == 16
    decode = task.model.tokenizer.decode
    texts = {decode(row.prompt.tolist()).split(":")[0] for row in task.held_out["held"].encoded}
    own = "Person" if on == "annotator" else "Earlier answers of the person"
    assert len(texts) == 2 and any(own.split()[0] in text for text in texts)
    everybody = task.held_out["held_as_everybody"].encoded
    assert {decode(row.prompt.tolist()) for row in everybody} == {"better is"}


@pytest.mark.slow
@pytest.mark.parametrize("on", ["group", "annotator", "examples"])
def test_a_killed_run_goes_on_to_the_same_bits(config: Config, tmp_path: Path, on, monkeypatch):
    config = conditioned(config, on, max_steps=8)
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    finetune(whole)

    class Killed(Exception):
        pass

    take = train._take_step

    def take_some(state, position):
        if position.step == 6:
            raise Killed
        return take(state, position)

    monkeypatch.setattr(train, "_take_step", take_some)
    with pytest.raises(Killed):
        finetune(config)
    monkeypatch.setattr(train, "_take_step", take)
    changed = dataclasses.replace(config, condition_dropout=0.5)
    with pytest.raises(UsageError, match=r"condition_dropout"):
        finetune(changed)
    finetune(config)
    assert_same(trained_params(config), trained_params(whole))
    assert history(config) == history(whole)
    name = "people_held.csv"
    one, other = (Path(c.output_dir) / name for c in (config, whole))
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_group_size": 3}, "train.jsonl: group: expected at least 3 people .* found 2 in"),
        (
            {"max_length": 9},
            "room for a prompt that says who answers, 10 tokens, in max_length = 9",
        ),
        (
            {"max_prompt_length": 8},
            "10 tokens, in max_prompt_length = 8, .*; raise max_prompt_length, or leave out",
        ),
        ({"condition_on": "none", "condition_dropout": 1.0}, "--condition_dropout must be "),
    ],
)
def test_bad_input(config: Config, changes: dict, message: str):
    bad = dataclasses.replace(config, **changes)
    with pytest.raises(UsageError, match=message):
        check(bad)
        load_task(bad)


def test_a_group_of_one_person_is_refused_without_a_flag(config: Config, tmp_path: Path):
    """By the default of --min_group_size, though it has answered more often than five times."""
    one = [row | {"group": "west", "annotator": "w"} for row in answers(range(1), 6, 2)]
    write(tmp_path / "train.jsonl", answers(range(10), 2, 0) + one)
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    del given["min_group_size"]
    alone = Config(**given)
    with pytest.raises(
        UsageError,
        match=r"train.jsonl: group: expected at least 5 people .* found 1 in 'west': .*"
        r"--min_group_size",
    ):
        load_task(alone)
    load_task(dataclasses.replace(alone, min_group_size=1))


@pytest.mark.parametrize("on", ["group", "examples"])
def test_rows_without_room_are_left_out_in_every_form_and_reported_once(config, tmp_path, on):
    """Their prompts have room as everybody's, because those may lose their beginning."""
    rows = {"train": answers(range(4), 6, 0), "held": answers(range(6), 4, 1)}
    for name, split in rows.items():
        split[2]["prompt"] = "red " * 30 + "better is"
        write(tmp_path / f"{name}.jsonl", split)
    config = dataclasses.replace(config, condition_on=on, num_examples=1, on_bad_row="skip")
    task = load_task(config)
    sources = [
        [row.row.source for row in task.held_out[name].encoded]
        for name in ("held", "held_as_everybody")
    ]
    assert sources[0] == sources[1] and len(sources[0]) == 23
    for name, number in (("train", 24), ("held", 24)):
        report = task.splits[name].report
        assert (report.read, report.kept, report.skipped) == (number, number - 1, 1)
        (problem,) = report.problems
        assert json.loads(problem.text) == rows[name][2]
        assert problem.source.endswith(f"{name}.jsonl:3")
    twin = task.held_out["held_as_everybody"].report
    assert (twin.kept, twin.skipped, twin.problems) == (23, 1, ())


@pytest.mark.slow
def test_a_run_is_known_by_who_gave_its_held_out_answers(config: Config, tmp_path: Path):
    config = dataclasses.replace(config, condition_on="none", max_steps=1)
    finetune(config)
    finetune(config)  # it is complete
    held = answers(range(6), 4, 1)
    write(tmp_path / "held.jsonl", [row | {"group": "east"} for row in held])
    with pytest.raises(UsageError, match="held_out_people: found"):
        finetune(config)
    file = Path(config.output_dir) / "config.json"
    older = json.loads(file.read_text())
    del older["held_out_people"], older["checksum"]
    file.write_text(json.dumps(older))
    finetune(config)  # an older version did not record it


def test_rows_without_the_field_and_names_of_files(config: Config, tmp_path: Path):
    plain = [{"prompt": "better is", "chosen": " red", "rejected": " blue"}]
    lacking = dataclasses.replace(config, dataset_name=write(tmp_path / "plain.jsonl", plain))
    with pytest.raises(UsageError, match=r"plain.jsonl: condition_on=group reads the field group"):
        load_task(lacking)
    file = write(tmp_path / "held_as_everybody.jsonl", plain)
    with pytest.raises(UsageError, match="rename the file"):
        load_task(dataclasses.replace(config, eval_dataset_name=(file,)))
