"""What cannot be is refused before anything is compiled, in words that name flag, file and line."""

import dataclasses
import datetime
import json
import typing
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from experiments.judgements import run as compare
from shatter.cli.common import checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console
from shatter.cli.finetune import config as flags
from shatter.cli.finetune import plan, run
from shatter.cli.finetune.config import Config, check
from shatter.cli.finetune.task import load_task

DATED = (
    "Today is {{ strftime_now('%d') }}\n{% for m in messages %}{{ m.role }} {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def model_folder(
    make_model: Callable[[Path, int], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 1)
    return folder


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


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something is compiled")

    monkeypatch.setattr(jax, "jit", refuse)


def numeric_fields(config_class) -> set[str]:
    hints = typing.get_type_hints(config_class)
    numbers = {int, float}
    return {name for name, hint in hints.items() if numbers & {hint, *typing.get_args(hint)}}


def test_every_number_has_a_range():
    assert numeric_fields(Config) == set(flags.RANGES)


@pytest.mark.parametrize("name", sorted(numeric_fields(Config)))
def test_no_number_is_absurd(name):
    check(Config())
    nan, inf = float("nan"), float("inf")
    for value in (nan, inf, -inf, -2, 2**31, 2**63, -(2**63), 1e30):
        with pytest.raises(UsageError, match=f"--{name} must be ") as error:
            check(dataclasses.replace(Config(), **{name: value}))
        assert str(error.value).endswith(f", found {value}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kl_length": 32},
            "--kl_length must be at most 31, for .*tiny has 32 positions, found 32",
        ),
        ({"max_completion_length": 64}, "--max_completion_length must be at most 31, for .* found"),
        ({"num_devices": 2**20}, r"--num_devices must be at most \d+, the devices that there are"),
        ({"template_date": "tomorrow"}, "--template_date must be a date such as .* 'tomorrow'"),
        (
            {"num_train_epochs": 1e9, "num_devices": 1},
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
        ({"methods": ()}, "--methods must name one at least of ilhf_mean, .* found none"),
        ({"beta": float("nan")}, "--beta must be positive, found nan"),
        ({"num_train_epochs": -1.0}, "--num_train_epochs must be positive, found -1.0"),
        ({"max_length": 0}, "--max_length must be at least 3, found 0"),
        ({"first_seed": -1}, "--first_seed must be at least 0, found -1"),
        ({"first_seed": 2**31 - 2, "num_seeds": 3}, "--num_seeds must be at most 2, found 3"),
    ],
)
def test_comparisons_of_methods_check_the_flags_of_their_runs(changes, message):
    with pytest.raises(UsageError, match=message):
        compare.check(dataclasses.replace(compare.Config(), **changes))
    compare.check(compare.Config())


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
    config = dataclasses.replace(config, per_device_train_batch_size=2, num_devices=1, **changes)
    task = load_task(config)
    assert (plan.num_steps(config, task), plan.num_batches(config, task)) == (steps, batches)


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
    with pytest.raises(UsageError, match=r"from_checkpoint=3: .*is complete, so that its checkp"):
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


def test_a_dry_run_compiles_and_writes_nothing(config):
    run.describe(config, load_task(config), open_console())
    assert not Path(config.output_dir).exists()
