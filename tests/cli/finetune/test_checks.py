"""Wrong flags and files end a run before anything is compiled; the message names them."""

import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax
import pytest

from shatter.cli.common import checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console
from shatter.cli.finetune import checks, plan, run, train
from shatter.cli.finetune.checks import check
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.dry_run import describe
from shatter.cli.finetune.task import load_task
from tests.cli.finetune.runs import pair, write

ROOT = Path(__file__).resolve().parents[3]
REQUIRED = Config(model_name_or_path="model", dataset_name="pairs.jsonl")
DATED = (
    "Today is {{ strftime_now('%d') }}\n{% for m in messages %}{{ m.role }} {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "pairs.jsonl", [pair("ab", " c", " d")]),
        output_dir=str(tmp_path / "run"),
        max_length=32,
        kl_length=4,
        max_completion_length=4,
        objective="dpo",
    )


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    """Fails if a run compiles a program, or reaches the training with programs of other tests."""

    def refuse(*args, **kwargs):
        raise AssertionError("something is compiled")

    monkeypatch.setattr(jax, "jit", refuse)
    monkeypatch.setattr(train, "train", refuse)


def numeric_fields(config_class) -> set[str]:
    hints = typing.get_type_hints(config_class)
    numbers = {int, float}
    return {name for name, hint in hints.items() if numbers & {hint, *typing.get_args(hint)}}


def test_every_number_has_a_range():
    assert numeric_fields(Config) == set(checks.RANGES)


def test_a_narrow_base_is_for_adapters():
    with pytest.raises(UsageError, match="--base_dtype=int8 belongs to --use_peft, because"):
        check(dataclasses.replace(REQUIRED, base_dtype="int8"))
    check(dataclasses.replace(REQUIRED, base_dtype="int8", use_peft=True))


def test_programs_are_shared_by_runs_whose_prompts_say_different_things_of_people():
    of_people = {"condition_on": "examples", "num_examples": 2}
    shown = dataclasses.replace(REQUIRED, **of_people, condition_dropout=0.5, min_group_size=9)
    assert program_config(shown) == program_config(REQUIRED)
    assert program_config(dataclasses.replace(shown, beta=0.3)) != program_config(shown)


@pytest.mark.parametrize("name", sorted(numeric_fields(Config)))
def test_no_number_is_absurd(name):
    check(REQUIRED)
    nan, inf = float("nan"), float("inf")
    for value in (nan, inf, -inf, -2, 2**31, 2**63, -(2**63), 1e30):
        with pytest.raises(UsageError, match=f"--{name} must be ") as error:
            check(dataclasses.replace(REQUIRED, **{name: value}))
        assert str(error.value).endswith(f", found {value}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kl_length": 32},
            "--kl_length must be at most 31, because .*tiny has 32 positions, found 32",
        ),
        (
            {"max_completion_length": 64},
            "--max_completion_length must be at most 31, because",
        ),
        (
            {"mesh": "data=4096"},
            r"--mesh: the mesh data=4096 has 4096 devices, and there are \d+ of",
        ),
        (
            {"mesh": "fsdp=5", "per_device_train_batch_size": 1},
            r"--mesh=fsdp=5: fsdp=5 divides no dimension of the parameters of .*tiny that fsdp",
        ),
        ({"template_date": "tomorrow"}, "--template_date must be a date such as .* 'tomorrow'"),
        (
            {"num_train_epochs": 1e9, "mesh": "data=1"},
            "--num_train_epochs=1000000000.0 makes .* steps",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_the_model_and_the_machine_lack_is_refused(config, changes, message, dry_run):
    rows = [pair(f"{a}{b}", " c", " d") for a in "abcdefgh" for b in "abcdefgh"]
    write(Path(config.dataset_name), rows)
    with pytest.raises(UsageError, match=message):
        run.experiment(dataclasses.replace(config, dry_run=dry_run, **changes))
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": "data=2,rows=4"}, "--mesh: expected axes among data, fsdp, tensor .*'rows=4'"),
        ({"mesh": "seed=2"}, "--mesh: expected axes among data, fsdp, tensor .* 'seed=2'"),
        ({"mesh": "data=0"}, "--mesh: expected a whole number of at least 1 as the size of data"),
        ({"mesh": "data=2,data=2"}, "--mesh: expected every axis once, found data twice"),
        ({"process_id": 1}, "--process_id belong to --multihost: add it"),
        ({"multihost": True, "process_id": 1}, "belong together.*found --process_id=1"),
        (
            {"multihost": True, "coordinator_address": "h", "num_processes": 2, "process_id": 1},
            "--coordinator_address must be HOST:PORT, found 'h'",
        ),
        (
            {"multihost": True, "coordinator_address": "h:1", "num_processes": 2, "process_id": 2},
            "--process_id must be below --num_processes=2, found 2",
        ),
    ],
)
def test_meshes_and_clusters_are_checked(config, changes, message):
    with pytest.raises(UsageError, match=message):
        run.experiment(dataclasses.replace(config, **changes))
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("epochs", "accumulation", "steps", "batches"),
    [
        (1.0, 1, 5, 5),
        (1.0, 2, 3, 5),
        (1.0, 9, 1, 5),
        (2.0, 4, 3, 10),
        (0.5, 2, 1, 2),
        (0.1, 1, 1, 1),
    ],
)
def test_epochs_are_whole_whatever_an_update_holds(config, epochs, accumulation, steps, batches):
    write(Path(config.dataset_name), [pair("a" * (n + 1), " c", " d") for n in range(9)])
    changes = {"num_train_epochs": epochs, "gradient_accumulation_steps": accumulation}
    config = dataclasses.replace(config, per_device_train_batch_size=2, mesh="data=1", **changes)
    task = load_task(config)
    length = plan.run_length(config, task)
    assert (length.num_steps, length.num_batches, length.epoch_batches) == (steps, batches, 5)
    assert length.epoch(steps) == batches / 5


def test_lengths_of_what_is_not_sampled_are_free(config):
    changes = {"kl_length": 64, "max_completion_length": 64, "objective": "reward_model"}
    load_task(dataclasses.replace(config, **changes))
    load_task(dataclasses.replace(config, max_completion_length=64, num_generations=0))


def test_a_run_folder_of_another_process_is_refused(config):
    task = load_task(config)
    with alone(config.output_dir, "--output_dir"):
        with pytest.raises(UsageError, match=r"--output_dir: process \d+ works on"):
            run.finetune(config, task)


def chats(n=4):
    user = lambda n: [{"role": "user", "content": f"a{'b' * n}"}]
    answer = lambda text: [{"role": "assistant", "content": text}]
    return [pair(user(n), answer("c"), answer("d")) for n in range(n)]


def test_the_date_of_a_template_is_frozen_with_the_run_and_settable(config, tmp_path):
    (tmp_path / "dated.jinja").write_text(DATED)
    write(Path(config.dataset_name), chats())
    config = dataclasses.replace(config, chat_template=str(tmp_path / "dated.jinja"))
    now = datetime.datetime.now()
    assert load_task(config).model.tokenizer.date.date() == now.date()

    given = dataclasses.replace(config, template_date="2026-01-31T23:59:00")
    task = load_task(given)
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(given, task)  # the folder has been made
    recorded = json.loads((Path(config.output_dir) / "config.json").read_text())
    assert recorded["template_date"] == "2026-01-31T23:59:00"
    again = load_task(config)  # of the run that is resumed, whatever the clock says
    assert again.model.tokenizer.date == datetime.datetime(2026, 1, 31, 23, 59)
    assert all(
        (a.prompt == b.prompt).all()
        for a, b in zip(task.train.encoded, again.train.encoded, strict=True)
    )
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(config, again)
    other = dataclasses.replace(config, template_date="2026-02-01")
    with pytest.raises(UsageError, match="template_date: found '2026-01-31T23:59:00', wanted '20"):
        run.finetune(other, load_task(other))


@pytest.mark.parametrize("found", [5, [1], "soon"])
def test_a_recorded_date_that_is_none_is_named_with_its_file(config, found):
    folder = Path(config.output_dir)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"template_date": found}))
    with pytest.raises(UsageError, match=r"run/config\.json is damaged \(--template_date must"):
        load_task(config)


@pytest.mark.parametrize("damaged", ["{}", "null", '{"before": ', '{"steps": 3}'])
def test_a_damaged_summary_is_named_and_nothing_is_removed(config, damaged):
    task, folder = load_task(config), Path(config.output_dir)
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(config, task)
    (folder / "checkpoints").mkdir(exist_ok=True)
    summary = folder / "summary.json"
    summary.write_text('{"steps": 2}')
    checksums.seal(summary)
    summary.write_text(damaged)
    with pytest.raises(UsageError, match=r"summary\.json is damaged[^$]*elete .* the run makes"):
        run.finetune(config, task)
    assert (folder / "checkpoints").exists()
    summary.write_text('{"steps": 2}')
    with pytest.raises(UsageError, match=r"from_checkpoint=3: .*is complete, so its checkpoints "):
        run.finetune(dataclasses.replace(config, resume_from_checkpoint=3), task)
    assert run.finetune(config, task) == {"steps": 2}
    assert not (folder / "checkpoints").exists()


def test_flags_that_change_nothing_learned_may_change_on_resumption(config):
    task = load_task(config)
    for changes in ({}, {"logging_steps": 3, "num_generations": 1, "max_completion_length": 2}):
        with pytest.raises(AssertionError, match="something is compiled"):
            run.finetune(dataclasses.replace(config, **changes), task)
    with pytest.raises(UsageError, match=r"beta: found 0.1, wanted 0.2"):
        run.finetune(dataclasses.replace(config, beta=0.2), task)


def test_a_flipped_bit_of_a_summary_is_named(config):
    task, folder = load_task(config), Path(config.output_dir)
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(config, task)
    file, values = folder / "summary.json", {"step": 0, "kl": 0.25}
    summary = {"before": values, "after": values, "steps": 1, "seconds": 1.0}
    run_folder.write_json(file, summary | {"tokens_per_second": 3.0})
    checksums.seal(file)
    assert run.finetune(config, task)["after"]["kl"] == 0.25
    file.write_text(file.read_text().replace("0.25", "0.35"))
    with pytest.raises(UsageError, match=r"summary\.json is damaged: its sha256 .*: delete .*anew"):
        run.finetune(config, task)


def test_files_may_be_given_by_other_paths_on_resumption(config, tmp_path):
    """Weights and data are compared by checksums of their content."""
    held = write(tmp_path / "held.jsonl", [pair("a", " c", " d")])
    config = dataclasses.replace(config, eval_dataset_name=(held,))
    begins = lambda config: pytest.raises(AssertionError, match="something is compiled")
    with begins(config):
        run.finetune(config, load_task(config))
    record = json.loads((Path(config.output_dir) / "config.json").read_text())
    names = {field.name for field in dataclasses.fields(Config)}
    assert record.keys() == names | {
        "batch_size",
        "weights",
        "data",
        "held_out",
        "held_out_people",
        "checksum",
    }
    shutil.copytree(config.model_name_or_path, tmp_path / "moved")
    moved = dataclasses.replace(
        config,
        model_name_or_path=str(tmp_path / "moved"),
        dataset_name=write(tmp_path / "renamed.jsonl", [pair("ab", " c", " d")]),
        eval_dataset_name=(write(tmp_path / "moved" / "held.jsonl", [pair("a", " c", " d")]),),
    )
    with begins(moved):
        run.finetune(moved, load_task(moved))
    other = dataclasses.replace(
        moved, dataset_name=write(tmp_path / "o.jsonl", [pair("a", "b", "c")])
    )
    with pytest.raises(
        UsageError, match=r"data: found '\w+', wanted '\w+'; dataset_name: found '.*"
    ):
        run.finetune(other, load_task(other))
    held = write(tmp_path / "other_name.jsonl", [pair("a", " c", " d")])
    renamed = dataclasses.replace(config, eval_dataset_name=(held,))  # metrics have this name
    with pytest.raises(UsageError, match=r"held_out: found \['held'\], wanted \['other_name'\]"):
        run.finetune(renamed, load_task(renamed))


def test_the_record_of_an_older_version_is_read(config):
    """It lacks the fields that may differ, and has a flag that no longer exists."""
    task = load_task(config)
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(config, task)
    file = Path(config.output_dir) / "config.json"
    record = json.loads(file.read_text())
    for name in ("output_dir", "save_steps", "logging_steps", "dry_run", "held_out", "checksum"):
        del record[name]
    for name in ("mesh", "multihost", "batch_size", "heartbeat_timeout"):
        del record[name]
    record["num_devices"] = 1
    record |= {"data_dir": None, "dataset_name": "ukp_humour", "model_name_or_path": "stories260k"}
    file.write_text(json.dumps(record))
    with pytest.raises(AssertionError, match="something is compiled"):
        run.finetune(config, task)


def test_model_and_data_are_required_and_the_message_shows_a_command():
    command = "shatter finetune --model_name_or_path=[^ ]+ --dataset_name=[^ ]+ --output_dir=[^ ]+"
    for name in ("model_name_or_path", "dataset_name"):
        with pytest.raises(UsageError, match=f"--{name} is required; for example: {command}$"):
            check(dataclasses.replace(REQUIRED, **{name: ""}))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "error: --model_name_or_path is required; for example: shatter finetune --model_name"),
        pytest.param(
            ["--data_dir=data"],
            "error: there is no flag --data_dir any more: pass the model",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["none", "removed"],
)
def test_the_command_says_how_to_go_on(flags, said):
    done = subprocess.run(
        [sys.executable, "-m", "shatter.cli", "finetune", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_compiles_and_writes_nothing(config):
    describe(config, load_task(config), open_console())
    assert not Path(config.output_dir).exists()
